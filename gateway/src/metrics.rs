//! A status in the text format of Prometheus and OpenMetrics.

use std::fmt;
use std::time::{Duration, UNIX_EPOCH};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{
    DescriptorEncoder, EncodeCounterValue, EncodeGaugeValue, MetricEncoder, NoLabelSet,
};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::{Registry, Unit};
use volmux_core::Access;

use crate::status::{ExportStatus, RequestStatus, Status};

/// `status` as text.
pub(crate) fn text(status: &Status) -> String {
    let mut registry = Registry::with_prefix("volmux_nbd");
    registry.register_collector(Box::new(Snapshot(status.clone())));
    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, &registry)
        .expect("writing to a string succeeds");
    text
}

/// A status as its metrics.
#[derive(Debug)]
struct Snapshot(Status);

/// A metric's name, its unit, and what it says. The name gets the unit, and a counter's `_total`.
type Descriptor<'a> = (&'a str, Option<Unit>, &'a str);

/// Writes a metric with one sample for each item.
fn write<V: EncodeCounterValue + EncodeGaugeValue, const N: usize>(
    encoder: &mut DescriptorEncoder<'_>,
    kind: MetricType,
    (name, unit, help): Descriptor<'_>,
    samples: impl IntoIterator<Item = ([(&'static str, String); N], V)>,
) -> fmt::Result {
    let mut metric = encoder.encode_descriptor(name, help, unit.as_ref(), kind)?;
    let put = |sample: &mut MetricEncoder<'_>, value| match kind {
        MetricType::Counter => sample.encode_counter::<NoLabelSet, V, u64>(&value, None),
        _ => sample.encode_gauge(&value),
    };
    for (labels, value) in samples {
        match N {
            0 => put(&mut metric, value)?,
            _ => put(&mut metric.encode_family(&labels)?, value)?,
        }
    }
    Ok(())
}

impl Collector for Snapshot {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        self.encode_server(&mut encoder)?;
        self.encode_exports(&mut encoder)?;
        self.encode_requests(&mut encoder)
    }
}

impl Snapshot {
    fn encode_server(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        use MetricType::{Counter, Gauge};
        let status = &self.0;
        let bytes = || Some(Unit::Bytes);
        let started = humantime::parse_rfc3339(&status.started).unwrap_or(UNIX_EPOCH);
        let started = started.duration_since(UNIX_EPOCH).unwrap_or_default();
        let about: Descriptor<'_> = ("start_time", Some(Unit::Seconds), "When the server began");
        write(encoder, Gauge, about, [([], started.as_secs_f64())])?;
        let limits = &status.limits;
        let gauges: [(Descriptor<'_>, u64); 4] = [
            (
                ("connections", None, "Open connections, handshakes included"),
                status.connections,
            ),
            (
                ("connections_limit", None, "Connections that are let in"),
                limits.connections as u64,
            ),
            (
                ("in_flight", bytes(), "Bytes of the requests under way"),
                status.in_flight_bytes,
            ),
            (
                ("in_flight_limit", bytes(), "Bytes that may be under way"),
                limits.in_flight_total,
            ),
        ];
        for (about, value) in gauges {
            write(encoder, Gauge, about, [([], value)])?;
        }
        let counters: [(Descriptor<'_>, u64); 3] = [
            (
                ("connections_opened", None, "Connections that there were"),
                status.connections_total,
            ),
            (
                (
                    "connections_turned_away",
                    None,
                    "Connections closed because there were too many",
                ),
                status.turned_away_total,
            ),
            (
                (
                    "handshakes_failed",
                    None,
                    "Handshakes too slow, malformed, without TLS or refused",
                ),
                status.handshakes_failed_total,
            ),
        ];
        for (about, value) in counters {
            write(encoder, Counter, about, [([], value)])?;
        }
        Ok(())
    }

    /// Writes a metric with one sample for each export that has a value.
    fn each_export(
        &self,
        encoder: &mut DescriptorEncoder<'_>,
        kind: MetricType,
        about: Descriptor<'_>,
        value: impl Fn(&ExportStatus) -> Option<u64>,
    ) -> fmt::Result {
        let exports = self.0.exports.iter();
        let samples = exports.filter_map(|e| Some(([("export", e.name.clone())], value(e)?)));
        write(encoder, kind, about, samples)
    }

    fn encode_exports(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        use MetricType::{Counter, Gauge};
        self.each_export(
            encoder,
            Gauge,
            ("export_open", None, "1 if the volume is open"),
            |e| Some(e.open.into()),
        )?;
        self.each_export(
            encoder,
            Gauge,
            ("export_size", Some(Unit::Bytes), "The open volume's size"),
            |e| e.size,
        )?;
        self.each_export(
            encoder,
            Gauge,
            ("export_writable", None, "1 if the export can be written"),
            |e| Some((e.access == Access::ReadWrite).into()),
        )?;
        self.each_export(
            encoder,
            Gauge,
            ("export_connections", None, "Open connections"),
            |e| Some(e.connections),
        )?;
        self.each_export(
            encoder,
            Gauge,
            ("export_clients", None, "Clients that are connected"),
            |e| Some(e.clients.len() as u64),
        )?;
        self.each_export(
            encoder,
            Gauge,
            ("export_requests_in_flight", None, "Requests under way"),
            |e| Some(e.in_flight),
        )?;
        self.each_export(
            encoder,
            Counter,
            (
                "export_connections_opened",
                None,
                "Connections that there were",
            ),
            |e| Some(e.connections_total),
        )
    }

    /// Writes a counter with one sample for each export and kind of request.
    fn each_request<V: EncodeCounterValue + EncodeGaugeValue>(
        &self,
        encoder: &mut DescriptorEncoder<'_>,
        about: Descriptor<'_>,
        value: impl Fn(&RequestStatus) -> V + Copy,
    ) -> fmt::Result {
        let samples = self.0.exports.iter().flat_map(|export| {
            export.requests.iter().map(move |(op, counted)| {
                let labels = [("export", export.name.clone()), ("op", op.clone())];
                (labels, value(counted))
            })
        });
        write(encoder, MetricType::Counter, about, samples)
    }

    fn encode_requests(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        self.each_request(
            encoder,
            ("requests", None, "Requests answered, with success or not"),
            |r| r.requests,
        )?;
        self.each_request(
            encoder,
            ("request_errors", None, "Requests answered with an error"),
            |r| r.errors,
        )?;
        self.each_request(
            encoder,
            (
                "request",
                Some(Unit::Bytes),
                "Bytes of the requests answered with success",
            ),
            |r| r.bytes,
        )?;
        self.each_request(
            encoder,
            (
                "request_duration",
                Some(Unit::Seconds),
                "Time from the requests' arrival to their answer, all together",
            ),
            |r| Duration::from_nanos(r.nanoseconds).as_secs_f64(),
        )
    }
}

#[cfg(test)]
mod tests {
    use crate::status::tests::sample;

    #[test]
    fn prometheus_gets_names_units_and_samples() {
        let text = sample().prometheus();
        let begin = "\
# HELP volmux_nbd_start_time_seconds When the server began
# TYPE volmux_nbd_start_time_seconds gauge
# UNIT volmux_nbd_start_time_seconds seconds
volmux_nbd_start_time_seconds 1700000000.25
# HELP volmux_nbd_connections Open connections, handshakes included
# TYPE volmux_nbd_connections gauge
volmux_nbd_connections 4
";
        assert!(text.starts_with(begin), "{text}");
        for line in [
            "# TYPE volmux_nbd_connections_opened counter",
            "volmux_nbd_connections_opened_total 9",
            "volmux_nbd_connections_turned_away_total 5",
            "volmux_nbd_handshakes_failed_total 6",
            "volmux_nbd_in_flight_bytes 8192",
            "volmux_nbd_in_flight_limit_bytes 536870912",
            "volmux_nbd_export_open{export=\"web-1\"} 1",
            "volmux_nbd_export_size_bytes{export=\"web-1\"} 1073741824",
            "volmux_nbd_export_clients{export=\"web-1\"} 1",
            "volmux_nbd_export_connections{export=\"web-1\"} 2",
            "volmux_nbd_export_connections_opened_total{export=\"web-1\"} 3",
            "volmux_nbd_export_requests_in_flight{export=\"web-1\"} 1",
            "volmux_nbd_requests_total{export=\"web-1\",op=\"read\"} 2",
            "volmux_nbd_requests_total{export=\"web-1\",op=\"write_zeroes\"} 0",
            "volmux_nbd_request_errors_total{export=\"web-1\",op=\"read\"} 1",
            "# UNIT volmux_nbd_request_bytes bytes",
            "volmux_nbd_request_bytes_total{export=\"web-1\",op=\"write\"} 512",
            "volmux_nbd_request_duration_seconds_total{export=\"web-1\",op=\"read\"} 2.0",
            "# EOF",
        ] {
            assert!(text.lines().any(|l| l == line), "{line} in:\n{text}");
        }
        let mut families: Vec<&str> = text
            .lines()
            .filter_map(|l| l.strip_prefix("# TYPE ")?.split(' ').next())
            .collect();
        let count = families.len();
        families.sort_unstable();
        families.dedup();
        assert_eq!(families.len(), count, "each family once");
    }

    #[test]
    fn what_is_not_open_has_no_size() {
        let mut status = sample();
        status.exports[0].size = None;
        status.exports[0].open = false;
        let text = status.prometheus();
        assert!(text.contains("volmux_nbd_export_open{export=\"web-1\"} 0\n"));
        assert!(!text.contains("export_size_bytes{"), "{text}");
    }
}
