//! Logins by hand.

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::scsi;

/// A login that is half done, in a packet that comes late.
pub struct HalfLogin(TcpStream);

impl HalfLogin {
    /// The first request: who this is, for which target.
    pub async fn begin(portal: &str, initiator: &str, target: &str) -> HalfLogin {
        let mut stream = TcpStream::connect(portal).await.expect("a target");
        let keys = format!(
            "InitiatorName={initiator}\0TargetName={target}\0SessionType=Normal\0AuthMethod=None\0"
        );
        // From the stage of security to that of operations.
        let begun = transit(&mut stream, 0x81, keys.as_bytes()).await;
        assert!(begun, "the login goes on");
        HalfLogin(stream)
    }

    /// The second one, after which the target takes commands; and one that writes. Whether that was
    /// done.
    pub async fn end(mut self) -> bool {
        if !transit(&mut self.0, 0x87, KEYS).await {
            return false;
        }
        // A unit attention is in the way of the first one.
        for number in 0..3_u8 {
            let mut write = [0; 48 + 512];
            // WRITE(10) of block 1, with its data, to unit 1.
            (write[0], write[1], write[6], write[9]) = (0x01, 0xa1, 2, 1);
            (write[19], write[22], write[27]) = (number, 2, number);
            (write[32], write[37], write[40]) = (0x2a, 1, 1);
            write[48..].fill(0xee);
            match answer_to(&mut self.0, &write).await {
                answer if answer.is_empty() => return false,
                answer if answer[0] & 0x3f == 0x21 && answer[3] == scsi::GOOD => return true,
                _ => {}
            }
        }
        false
    }
}

impl HalfLogin {
    /// Ends the login, asks for more data than can be under way, and takes none of it.
    pub async fn stall(mut self) -> TcpStream {
        assert!(transit(&mut self.0, 0x87, KEYS).await, "logged in");
        for number in 0..128_u8 {
            // READ(10) of 512 blocks from unit 1.
            let mut read = [0; 48];
            (read[0], read[1], read[9]) = (0x01, 0xc1, 1);
            (read[19], read[21], read[27]) = (number, 4, number);
            (read[32], read[39]) = (0x28, 2);
            self.0.write_all(&read).await.expect("sent");
        }
        self.0
    }
}

/// All that there is, so that the target has nothing to propose.
const KEYS: &[u8] = b"HeaderDigest=None\0DataDigest=None\0MaxConnections=1\0InitialR2T=Yes\0\
    ImmediateData=Yes\0MaxRecvDataSegmentLength=8192\0MaxBurstLength=262144\0\
    FirstBurstLength=65536\0DefaultTime2Wait=2\0DefaultTime2Retain=20\0\
    MaxOutstandingR2T=1\0DataPDUInOrder=Yes\0DataSequenceInOrder=Yes\0\
    ErrorRecoveryLevel=0\0IFMarker=No\0OFMarker=No\0";

/// Login requests until the target goes on to the next stage. Whether it does.
async fn transit(stream: &mut TcpStream, flags: u8, keys: &[u8]) -> bool {
    let mut keys = keys;
    for _ in 0..5 {
        let answer = request(stream, flags, keys).await;
        if answer.is_empty() || answer[36..38] != [0, 0] {
            return false;
        }
        if answer[1] & 0x80 != 0 {
            return true;
        }
        // It had something to say first.
        keys = b"";
    }
    panic!("the target does not come to an end");
}

/// A login request, and its answer; nothing if the target hangs up.
async fn request(stream: &mut TcpStream, flags: u8, keys: &[u8]) -> Vec<u8> {
    let mut request = vec![0; 48];
    (request[0], request[1]) = (0x43, flags);
    request[6..8].copy_from_slice(&(keys.len() as u16).to_be_bytes());
    (request[8], request[13]) = (0x80, 1);
    request.extend_from_slice(keys);
    request.resize(request.len().next_multiple_of(4), 0);
    answer_to(stream, &request).await
}

/// The header of what the target answers; nothing if it hangs up.
async fn answer_to(stream: &mut TcpStream, request: &[u8]) -> Vec<u8> {
    let mut answer = vec![0; 48];
    let talk = async {
        stream.write_all(request).await?;
        stream.read_exact(&mut answer).await?;
        let length = usize::from(u16::from_be_bytes([answer[6], answer[7]]));
        stream
            .read_exact(&mut vec![0; length.next_multiple_of(4)])
            .await
    };
    match talk.await {
        Ok(_) => answer,
        Err(_) => Vec::new(),
    }
}
