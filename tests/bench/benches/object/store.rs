//! The S3 server: this program, started again with other arguments.

use std::env;
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use tempfile::NamedTempFile;
use volmux_bench::Result;
use volmux_s3_server::{Options, Remote, Server};

use super::BUCKET;

const SERVE: &str = "serve-s3";
const COMPRESS: &str = "compress";

/// An S3 server in a process of its own. Dropping it ends it.
pub struct Store {
    process: Child,
    remote: Remote,
    credentials: NamedTempFile,
}

impl Store {
    /// A new, empty one.
    pub fn start() -> Result<Self> {
        Store::start_with("plain")
    }

    /// One that holds its objects compressed, for data that would not fit into memory otherwise.
    pub fn compressed() -> Result<Self> {
        Store::start_with(COMPRESS)
    }

    fn start_with(how: &str) -> Result<Self> {
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "--"]);
        command.arg(env::current_exe()?).args([SERVE, how]);
        let command = command.stdin(Stdio::null()).stdout(Stdio::piped());
        let mut process = command.spawn()?;
        let output = process.stdout.take().ok_or("no output of the S3 server")?;
        let mut endpoint = String::new();
        BufReader::new(output).read_line(&mut endpoint)?;
        let remote = Remote::new(&endpoint);
        // Everybody is let in, but clients want something to sign with.
        let mut credentials = NamedTempFile::new()?;
        credentials.write_all(b"AWS_ACCESS_KEY_ID=bench\nAWS_SECRET_ACCESS_KEY=bench\n")?;
        Ok(Store {
            process,
            remote,
            credentials,
        })
    }

    pub fn endpoint(&self) -> String {
        self.remote.endpoint()
    }

    /// Orders and counters.
    pub fn remote(&self) -> &Remote {
        &self.remote
    }

    /// Waits until nothing was asked of it for a while.
    pub fn settle(&self) -> Result<()> {
        let (start, mut before) = (Instant::now(), self.remote.counts()?);
        let mut still = 0;
        while still < 3 {
            if start.elapsed() > Duration::from_secs(60) {
                return Err("the store does not come to rest".into());
            }
            sleep(Duration::from_millis(100));
            let now = self.remote.counts()?;
            still = if now == before { still + 1 } else { 0 };
            before = now;
        }
        Ok(())
    }

    /// The URL of the pool `name`, with these options besides.
    pub fn url(&self, name: &str, options: &str) -> String {
        let mut url = format!(
            "s3://{BUCKET}/{name}?region=us-east-1&endpoint={}&credentials_file={}",
            self.endpoint(),
            self.credentials.path().display()
        );
        if !options.is_empty() {
            url.push('&');
            url.push_str(options);
        }
        url
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        // Fails only if it ended already.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Serves until it is killed, if `arguments` ask for that.
pub fn if_asked(arguments: &[String]) -> Option<Result<()>> {
    let [serve, how] = arguments else {
        return None;
    };
    let work = || -> Result<()> {
        let server = Server::start(Options {
            buckets: vec![BUCKET.into()],
            compress: how == COMPRESS,
            ..Options::default()
        })?;
        println!("{}", server.endpoint());
        loop {
            std::thread::park();
        }
    };
    (serve == SERVE).then(work)
}
