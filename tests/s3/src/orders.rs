//! Orders to a server in another process: requests whose path no bucket can have.

use std::collections::HashMap;
use std::str::FromStr;
use std::time::Duration;

use crate::faults::{Fault, Rule};
use crate::http::Response;
use crate::server::Shared;

pub(crate) const PREFIX: &str = "/-/";

/// Carries out `order`: its name, a question mark, and its options as in a query.
pub(crate) fn obey(shared: &Shared, order: &str) -> Response {
    let (name, query) = order.split_once('?').unwrap_or((order, ""));
    let pairs = query.split('&').filter_map(|pair| pair.split_once('='));
    match carry_out(shared, name, &Order(pairs.collect())) {
        Ok(body) => Response::new(200).body(body),
        Err(reason) => Response::new(400).body(reason),
    }
}

struct Order<'a>(HashMap<&'a str, &'a str>);

impl Order<'_> {
    fn get<T: FromStr>(&self, option: &str, default: Option<T>) -> Result<T, String> {
        match self.0.get(option) {
            Some(text) => text
                .parse()
                .map_err(|_| format!("{option}={text} is not understood")),
            None => default.ok_or(format!("{option} is missing")),
        }
    }

    fn kind(&self) -> Result<Option<crate::Kind>, String> {
        self.0.get("kind").map(|kind| kind.parse()).transpose()
    }

    fn ms(&self) -> Result<Duration, String> {
        self.get("ms", None).map(Duration::from_millis)
    }
}

fn carry_out(shared: &Shared, name: &str, order: &Order<'_>) -> Result<String, String> {
    let json = match name {
        "counts" => Some(serde_json::to_string(&shared.counts())),
        "stored" => Some(serde_json::to_string(&shared.stored())),
        _ => None,
    };
    if let Some(json) = json {
        return json.map_err(|error| error.to_string());
    }
    match name {
        "latency" => shared.faults().latency(order.kind()?, order.ms()?),
        "fail" => shared.faults().add(Rule {
            fault: fault(order)?,
            kind: order.kind()?,
            key: order.get("key", Some(String::new()))?,
            skip: order.get("after", Some(0))?,
            times: order.get("times", Some(1))?,
        }),
        "random" => {
            let seed = order.get("seed", None)?;
            shared.faults().random(seed, order.get("per-mille", None)?);
        }
        "heal" => shared.faults().clear(),
        "outage" => shared.outage(order.ms()?),
        "read-only" => shared.read_only(order.get("on", Some(true))?),
        _ => return Err(format!("no such order: {name}")),
    }
    Ok("done\n".into())
}

fn fault(order: &Order<'_>) -> Result<Fault, String> {
    Ok(
        match order.get("how", Some(String::from("slow-down")))?.as_str() {
            "slow-down" => Fault::SlowDown,
            "internal" => Fault::Internal,
            "denied" => Fault::Denied,
            "reset" => Fault::Reset,
            "lost-answer" => Fault::LostAnswer,
            "torn-answer" => Fault::TornAnswer,
            "hang" => Fault::Hang(order.ms()?),
            other => return Err(format!("how={other} is not understood")),
        },
    )
}
