//! QEMU and libnbd over TLS.

use std::path::Path;

use volmux_gateway::{Address, ClientCertificates, Tls};

use crate::common::certificates::Certificates;
use crate::common::program::{Ran, run};
use crate::common::server::{MIB, Setup, TestServer};

fn server(certificates: &Certificates, clients: ClientCertificates) -> TestServer {
    let tls = Tls::from_directory(&certificates.server(), clients).expect("certificates");
    Setup::memory().volume("vol", MIB).tls(tls).tcp().start()
}

fn port(server: &TestServer) -> u16 {
    match &server.address {
        Address::Tcp(address) => address.port(),
        Address::Unix(_) => panic!("it listens on TCP"),
    }
}

/// qemu-io with the certificates of a directory.
fn qemu_io(server: &TestServer, dir: &Path, command: &str) -> Ran {
    let object = format!(
        "tls-creds-x509,id=tls,endpoint=client,dir={}",
        dir.display()
    );
    let options = format!(
        "driver=nbd,host=127.0.0.1,port={},export=vol,tls-creds=tls,tls-hostname=localhost",
        port(server)
    );
    run(
        "qemu-io",
        ["--object", &object, "--image-opts", &options, "-c", command],
    )
}

fn uri(server: &TestServer, dir: &Path) -> String {
    let port = port(server);
    format!(
        "nbds://localhost:{port}/vol?tls-certificates={}",
        dir.display()
    )
}

#[test]
fn qemu_reads_and_writes_over_tls() {
    let certificates = Certificates::new();
    for clients in [ClientCertificates::NotAsked, ClientCertificates::Required] {
        let server = server(&certificates, clients);
        let dir = certificates.client();
        qemu_io(&server, &dir, "write -P 0x5a 1000 500000").ok();
        qemu_io(&server, &dir, "read -P 0x5a 1000 500000").ok();
        assert_eq!(server.content("vol")[1000..1004], [0x5a; 4]);
        assert!(server.status().tls);
    }
}

#[test]
fn libnbd_copies_over_tls_on_several_connections() {
    let certificates = Certificates::new();
    let server = server(&certificates, ClientCertificates::Required);
    let uri = uri(&server, &certificates.client());
    assert_eq!(
        run("nbdinfo", ["--size", &uri]).ok().trim(),
        MIB.to_string()
    );
    let source = server.dir().join("source");
    let back = server.dir().join("back");
    let content: Vec<u8> = (0..MIB).map(|i| (i * 31 % 253) as u8).collect();
    std::fs::write(&source, &content).expect("a file");
    let path = |path: &Path| path.to_str().expect("UTF-8").to_owned();
    run("nbdcopy", ["--connections=4", &path(&source), &uri]).ok();
    assert!(server.content("vol") == content);
    run("nbdcopy", ["--connections=4", &uri, &path(&back)]).ok();
    assert!(std::fs::read(&back).expect("a file") == content);
}

#[test]
fn a_client_that_trusts_another_authority_goes_away() {
    let certificates = Certificates::new();
    let strangers = Certificates::new();
    let server = server(&certificates, ClientCertificates::NotAsked);
    qemu_io(&server, &strangers.client(), "write -P 1 0 512").failed();
    run("nbdinfo", [uri(&server, &strangers.client())]).failed();
    assert_eq!(server.content("vol")[..512], [0; 512]);
}

#[test]
fn a_client_without_the_certificate_that_is_required_gets_nowhere() {
    let certificates = Certificates::new();
    let server = server(&certificates, ClientCertificates::Required);
    qemu_io(&server, &certificates.nobody(), "write -P 1 0 512").failed();
    run("nbdinfo", [uri(&server, &certificates.nobody())]).failed();
    server.log.expect_warning(&["peer=", "handshake"]);
    assert_eq!(server.content("vol")[..512], [0; 512]);
}

#[test]
fn a_plain_client_is_refused() {
    let certificates = Certificates::new();
    let server = server(&certificates, ClientCertificates::NotAsked);
    let uri = format!("nbd://localhost:{}/vol", port(&server));
    run("nbdinfo", [&uri]).failed();
    let said = run("qemu-io", ["-f", "raw", "-c", "read 0 512", &uri]).failed();
    assert!(said.contains("TLS"), "{said}");
    server.log.expect_warning(&["peer=", "TLS"]);
}

#[test]
fn a_client_that_wants_tls_does_not_fall_back_to_none() {
    let certificates = Certificates::new();
    let plain = Setup::memory().volume("vol", MIB).tcp().start();
    qemu_io(&plain, &certificates.client(), "write -P 1 0 512").failed();
    run("nbdinfo", [uri(&plain, &certificates.client())]).failed();
    assert_eq!(plain.content("vol")[..512], [0; 512]);
}
