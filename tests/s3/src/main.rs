//! The S3 server of the tests and benchmarks in a process of its own.
//!
//! Prints its endpoint as one line and serves until it is killed. Orders are given on its own
//! address: see `volmux_s3_server::Remote`.

use std::env;
use std::error::Error;
use std::process::ExitCode;
use std::thread;
use std::time::Duration;

use volmux_s3_server::{Keys, Options, Server};

const USAGE: &str = "usage: volmux-s3-server [--listen ADDRESS:PORT] [--bucket NAME]... \
[--access-key ID --secret-key KEY] [--compress] [--latency-ms N]";

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("volmux-s3-server: {error}\n{USAGE}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<(), Box<dyn Error>> {
    let mut options = Options::default();
    let (mut buckets, mut id, mut secret) = (Vec::new(), None, None);
    let mut latency = Duration::ZERO;
    let mut arguments = env::args().skip(1);
    while let Some(argument) = arguments.next() {
        if argument == "--compress" {
            options.compress = true;
            continue;
        }
        let value = arguments.next().ok_or(format!("{argument}: no value"))?;
        match argument.as_str() {
            "--listen" => options.listen = value.parse()?,
            "--bucket" => buckets.push(value),
            "--access-key" => id = Some(value),
            "--secret-key" => secret = Some(value),
            "--latency-ms" => latency = Duration::from_millis(value.parse()?),
            _ => return Err(format!("{argument} is not understood").into()),
        }
    }
    if !buckets.is_empty() {
        options.buckets = buckets;
    }
    options.keys = match (id, secret) {
        (Some(id), Some(secret)) => Some(Keys { id, secret }),
        (None, None) => None,
        _ => return Err("--access-key and --secret-key come together".into()),
    };
    let server = Server::start(options)?;
    server.latency(None, latency);
    println!("{}", server.endpoint());
    loop {
        thread::park();
    }
}
