//! The XML of S3.

use std::fmt::Write;

use crate::store::{Page, Query};

/// A page of a list, for ListObjectsV2 or the older ListObjects.
pub(crate) fn list(bucket: &str, query: &Query, page: &Page, version_2: bool) -> String {
    let mut xml = String::from(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n\
         <ListBucketResult xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\">",
    );
    let mut tag = |name: &str, value: &str| {
        let _infallible = write!(xml, "<{name}>{}</{name}>", escape(value));
    };
    tag("Name", bucket);
    tag("Prefix", &query.prefix);
    tag("Delimiter", &query.delimiter);
    tag("MaxKeys", &query.limit.to_string());
    let count = page.objects.len() + page.prefixes.len();
    tag("KeyCount", &count.to_string());
    tag("IsTruncated", &page.next.is_some().to_string());
    if let Some(next) = &page.next {
        let name = if version_2 {
            "NextContinuationToken"
        } else {
            "NextMarker"
        };
        tag(name, next);
    }
    for (key, object) in &page.objects {
        let _infallible = write!(
            xml,
            "<Contents><Key>{}</Key><LastModified>{}</LastModified><ETag>&quot;{}&quot;</ETag>\
             <Size>{}</Size><StorageClass>STANDARD</StorageClass></Contents>",
            escape(key),
            humantime::format_rfc3339_millis(object.modified),
            escape(&object.etag),
            object.length(),
        );
    }
    for prefix in &page.prefixes {
        let prefix = escape(prefix);
        let _infallible = write!(
            xml,
            "<CommonPrefixes><Prefix>{prefix}</Prefix></CommonPrefixes>"
        );
    }
    xml.push_str("</ListBucketResult>");
    xml
}

/// The answer to a DELETE of many objects.
pub(crate) fn deleted(keys: &[String]) -> String {
    let mut xml = String::from(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n\
         <DeleteResult xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\">",
    );
    for key in keys {
        let key = escape(key);
        let _infallible = write!(xml, "<Deleted><Key>{key}</Key></Deleted>");
    }
    xml.push_str("</DeleteResult>");
    xml
}

/// The keys in the request to delete many objects.
pub(crate) fn keys(request: &str) -> Vec<String> {
    let rest = request.split("<Key>").skip(1);
    rest.filter_map(|text| Some(unescape(text.split_once("</Key>")?.0)))
        .collect()
}

const ENTITIES: [(&str, &str); 5] = [
    ("&", "&amp;"),
    ("<", "&lt;"),
    (">", "&gt;"),
    ("\"", "&quot;"),
    ("'", "&apos;"),
];

fn escape(text: &str) -> String {
    let mut text = text.to_owned();
    for (plain, escaped) in ENTITIES {
        if text.contains(plain) {
            text = text.replace(plain, escaped);
        }
    }
    text
}

fn unescape(text: &str) -> String {
    let mut text = text.to_owned();
    for (plain, escaped) in ENTITIES.into_iter().rev() {
        text = text.replace(escaped, plain);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn odd_keys_survive() {
        let odd = "a<b>&amp;'\"c";
        assert_eq!(unescape(&escape(odd)), odd);
        let request = format!(
            "<Delete><Object><Key>{}</Key></Object><Object><Key>d/e</Key></Object></Delete>",
            escape(odd)
        );
        assert_eq!(keys(&request), [odd, "d/e"]);
    }
}
