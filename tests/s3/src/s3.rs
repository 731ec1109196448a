//! From a request to what S3 answers.

use std::ops::Range;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use percent_encoding::percent_decode_str;

use crate::Kind;
use crate::auth::hex;
use crate::http::{Request, Response};
use crate::store::{Condition, Object, Query, Refused, Store};
use crate::xml;

/// The most keys in one answer to LIST.
const PAGE: usize = 1000;

/// What a request is about.
#[derive(Debug)]
pub(crate) struct Target {
    pub(crate) kind: Kind,
    pub(crate) bucket: String,
    /// Of an object; empty for requests about a bucket.
    pub(crate) key: String,
    pub(crate) query: Vec<(String, String)>,
}

impl Target {
    pub(crate) fn of(request: &Request) -> Self {
        let decode = |text: &str| percent_decode_str(text).decode_utf8_lossy().into_owned();
        let path = request.path().trim_start_matches('/');
        let (bucket, key) = path.split_once('/').unwrap_or((path, ""));
        let query: Vec<(String, String)> = request
            .query()
            .split('&')
            .filter(|pair| !pair.is_empty())
            .map(|pair| {
                let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
                (decode(name), decode(&value.replace('+', " ")))
            })
            .collect();
        let mut target = Target {
            kind: Kind::Other,
            bucket: decode(bucket),
            key: decode(key),
            query,
        };
        target.kind = target.kind_of(request);
        target
    }

    fn kind_of(&self, request: &Request) -> Kind {
        let about_object = !self.key.is_empty();
        match request.method.as_str() {
            "GET" if about_object => Kind::Get,
            "GET" if self.option("location").is_none() => Kind::List,
            "HEAD" if about_object => Kind::Head,
            "PUT" if about_object && request.header("if-none-match").is_some() => Kind::Create,
            "PUT" if about_object => Kind::Put,
            "DELETE" if about_object => Kind::Delete,
            "POST" if self.option("delete").is_some() => Kind::DeleteMany,
            _ => Kind::Other,
        }
    }

    pub(crate) fn option(&self, name: &str) -> Option<&str> {
        let mut found = self.query.iter().filter(|(option, _)| option == name);
        found.next().map(|(_, value)| value.as_str())
    }

    /// What to show of it: the key, or what is listed.
    pub(crate) fn subject(&self) -> &str {
        match self.kind {
            Kind::List => self.option("prefix").unwrap_or_default(),
            _ => &self.key,
        }
    }
}

/// Does what `request` asks for.
pub(crate) fn answer(store: &Store, target: &Target, request: &Request) -> Response {
    match target.kind {
        Kind::Get | Kind::Head => get(store, target, request),
        Kind::Put | Kind::Create => put(store, target, request),
        Kind::List => list(store, target),
        Kind::Delete => {
            if store.delete(&target.bucket, [target.key.as_str()].into_iter()) {
                Response::new(204)
            } else {
                no_bucket()
            }
        }
        Kind::DeleteMany => {
            let keys = xml::keys(&String::from_utf8_lossy(&request.body));
            if store.delete(&target.bucket, keys.iter().map(String::as_str)) {
                Response::new(200)
                    .with("content-type", "application/xml")
                    .body(xml::deleted(&keys))
            } else {
                no_bucket()
            }
        }
        Kind::Other => bucket(store, target, request),
    }
}

fn bucket(store: &Store, target: &Target, request: &Request) -> Response {
    match request.method.as_str() {
        "PUT" if target.key.is_empty() => {
            store.make_bucket(&target.bucket);
            Response::new(200)
        }
        "HEAD" | "GET" if !store.has_bucket(&target.bucket) => no_bucket(),
        "HEAD" => Response::new(200),
        "GET" => Response::new(200)
            .with("content-type", "application/xml")
            .body("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<LocationConstraint/>"),
        _ => Response::error(501, "NotImplemented", "This server does not do that"),
    }
}

fn no_bucket() -> Response {
    Response::error(404, "NoSuchBucket", "The bucket does not exist")
}

fn put(store: &Store, target: &Target, request: &Request) -> Response {
    let encoding = request.header("content-encoding").unwrap_or_default();
    if request.header("x-amz-copy-source").is_some() || encoding.contains("aws-chunked") {
        return Response::error(501, "NotImplemented", "This server does not do that");
    }
    let condition = match (request.header("if-none-match"), request.header("if-match")) {
        (Some("*"), _) => Condition::Absent,
        (Some(_), _) => return Response::error(501, "NotImplemented", "Only * is understood"),
        (None, Some(etag)) => Condition::Etag(etag.trim_matches('"').to_owned()),
        (None, None) => Condition::Always,
    };
    // What a client says to be the MD5 of the body is not checked: that would take longer than all
    // the rest.
    let md5 = request.header("content-md5");
    let md5 = md5.and_then(|md5| BASE64_STANDARD.decode(md5).ok());
    let kept = |name: &str| {
        name.starts_with("x-amz-meta-")
            || ["content-type", "content-encoding", "cache-control"].contains(&name)
    };
    let headers = request.headers().iter();
    let put = store.put(
        &target.bucket,
        target.key.clone(),
        request.body.clone(),
        headers.filter(|(name, _)| kept(name)).cloned().collect(),
        (md5.map(|md5| hex(&md5)), &condition),
    );
    match put {
        Ok(etag) => Response::new(200).with("etag", format!("\"{etag}\"")),
        Err(Refused::NoBucket) => no_bucket(),
        Err(Refused::Condition) => Response::error(
            412,
            "PreconditionFailed",
            "At least one of the preconditions you specified did not hold",
        ),
    }
}

fn get(store: &Store, target: &Target, request: &Request) -> Response {
    let object = match store.get(&target.bucket, &target.key) {
        None => return no_bucket(),
        Some(None) => {
            let response = Response::error(404, "NoSuchKey", "The object does not exist");
            return if target.kind == Kind::Head {
                without_body(response)
            } else {
                response
            };
        }
        Some(Some(object)) => object,
    };
    let names_it = |header: &str| {
        let tags = request.header(header)?;
        Some(tags == "*" || tags.contains(&object.etag))
    };
    if names_it("if-match") == Some(false) {
        return Response::error(412, "PreconditionFailed", "The ETag is another");
    }
    let whole = 0..object.length();
    let range = match request.header("range").map(|text| range(text, whole.end)) {
        None => None,
        Some(Ok(range)) => Some(range),
        Some(Err(())) => {
            return Response::error(416, "InvalidRange", "The range is not within the object")
                .with("content-range", format!("bytes */{}", whole.end));
        }
    };
    if names_it("if-none-match") == Some(true) {
        return describe(Response::new(304), &object);
    }
    let response = match &range {
        None => Response::new(200),
        Some(range) => Response::new(206).with(
            "content-range",
            format!("bytes {}-{}/{}", range.start, range.end - 1, whole.end),
        ),
    };
    let range = range.unwrap_or(whole);
    let mut response = describe(response, &object);
    if target.kind == Kind::Head {
        response.length = Some(range.end - range.start);
        return response;
    }
    response.body(object.read(range))
}

fn without_body(mut response: Response) -> Response {
    response.length = Some(response.body.len() as u64);
    response.body.clear();
    response
}

fn describe(mut response: Response, object: &Object) -> Response {
    response.stored.clone_from(&object.headers);
    response
        .with("etag", format!("\"{}\"", object.etag))
        .with("last-modified", httpdate::fmt_http_date(object.modified))
        .with("accept-ranges", "bytes")
}

/// The bytes that a Range header means of an object of `length` bytes.
fn range(header: &str, length: u64) -> Result<Range<u64>, ()> {
    let spec = header.strip_prefix("bytes=").ok_or(())?;
    let (first, last) = spec.split_once('-').ok_or(())?;
    let number = |text: &str| text.parse::<u64>().map_err(|_| ());
    let range = match (first, last) {
        ("", last) => length.saturating_sub(number(last)?)..length,
        (first, "") => number(first)?..length,
        (first, last) => number(first)?..number(last)?.saturating_add(1).min(length),
    };
    if range.is_empty() {
        return Err(());
    }
    Ok(range)
}

fn list(store: &Store, target: &Target) -> Response {
    let text = |name: &str| target.option(name).unwrap_or_default();
    let after = ["continuation-token", "start-after", "marker"];
    let after = after.into_iter().filter_map(|name| target.option(name));
    let limit = text("max-keys").parse().unwrap_or(PAGE);
    let query = Query {
        prefix: text("prefix").to_owned(),
        after: after.max().unwrap_or_default().to_owned(),
        delimiter: text("delimiter").to_owned(),
        limit: limit.min(PAGE),
    };
    let Some(page) = store.list(&target.bucket, &query) else {
        return no_bucket();
    };
    let version_2 = text("list-type") == "2";
    Response::new(200)
        .with("content-type", "application/xml")
        .body(xml::list(&target.bucket, &query, &page, version_2))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_those_of_http() {
        assert_eq!(range("bytes=0-9", 100), Ok(0..10));
        assert_eq!(range("bytes=90-200", 100), Ok(90..100));
        assert_eq!(range("bytes=90-", 100), Ok(90..100));
        assert_eq!(range("bytes=-7", 100), Ok(93..100));
        for wrong in [
            "bytes=100-",
            "bytes=5-4",
            "bytes=",
            "lines=1-2",
            "bytes=x-9",
        ] {
            assert_eq!(range(wrong, 100), Err(()), "{wrong}");
        }
    }
}
