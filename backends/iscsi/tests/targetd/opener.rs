//! Opens volumes with the workspace's initiator, as a pool's opener does; and one that opens
//! nothing.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream;
use volmux_core::{
    Access, AttachOptions, AttachTarget, Attachment, BlockDevice, ByteRange, ChapReference, Error,
    ErrorKind, ExtentStream, Grade, Holder, OpenOptions, Pool, Result, VolumeName, ZeroOptions,
};
use volmux_iscsi::targetd::OpenArray;
use volmux_iscsi_initiator::{Command, Credentials, Data, Options, Session};

use crate::server::Server;

const BLOCK: u64 = 512;

/// For pools of which nothing is opened.
#[derive(Debug)]
pub struct Closed;

#[async_trait]
impl OpenArray for Closed {
    async fn open(
        &self,
        _array: Arc<dyn Pool>,
        _name: &VolumeName,
        _options: OpenOptions,
    ) -> Result<Arc<dyn BlockDevice>> {
        Err(Error::new(ErrorKind::Unavailable, "open_volume").reason("nothing is opened here"))
    }
}

/// Each open volume has an initiator of its own.
#[derive(Debug)]
pub struct Opener {
    server: Option<Arc<Server>>,
    opened: AtomicU64,
}

impl Opener {
    /// With a tgt behind the server.
    pub fn new(server: &Arc<Server>) -> Arc<Opener> {
        Opener::of(Some(server.clone()))
    }

    /// For a target that has units of each initiator.
    pub fn for_real() -> Arc<Opener> {
        Opener::of(None)
    }

    fn of(server: Option<Arc<Server>>) -> Arc<Opener> {
        let opened = AtomicU64::new(1);
        Arc::new(Opener { server, opened })
    }
}

#[async_trait]
impl OpenArray for Opener {
    async fn open(
        &self,
        array: Arc<dyn Pool>,
        name: &VolumeName,
        options: OpenOptions,
    ) -> Result<Arc<dyn BlockDevice>> {
        let number = self.opened.fetch_add(1, Ordering::Relaxed);
        let initiator = format!("iqn.2026-01.org.example:opener-{number}");
        if let Some(server) = &self.server {
            reserve(server, &initiator, number);
        }
        let options = AttachOptions {
            holder: Holder::new(initiator)?,
            access: options.access,
            sharing: options.sharing,
        };
        let attachment = array.attach_volume(name, options).await?;
        let opened = Device::open(array, &attachment).await;
        Ok(Arc::new(opened.expect("it can be logged in to")))
    }
}

/// tgt has its controller under number 0, and one number for all initiators: with this they differ.
pub fn reserve(server: &Server, initiator: &str, numbers: u64) {
    let mut array = server.array();
    for lun in 0..numbers {
        array.elsewhere.push((initiator.to_owned(), lun));
    }
}

/// An open volume, detached when it is dropped.
#[derive(Debug)]
pub struct Device {
    array: Arc<dyn Pool>,
    volume: VolumeName,
    holder: Holder,
    access: Access,
    session: Session,
    lun: u64,
    size: u64,
}

impl Device {
    /// Logs in to what was attached.
    pub async fn open(
        array: Arc<dyn Pool>,
        attachment: &Attachment,
    ) -> volmux_iscsi_initiator::Result<Device> {
        let (session, lun) = log_in(attachment).await?;
        let mut device = Device {
            array,
            volume: attachment.volume.clone(),
            holder: attachment.holder.clone(),
            access: attachment.access,
            session,
            lun,
            size: 0,
        };
        // READ CAPACITY (16), SBC-3 section 5.16.
        let mut cdb = vec![0; 16];
        (cdb[0], cdb[1], cdb[13]) = (0x9e, 0x10, 32);
        let capacity = device.execute(cdb, Data::Read(32)).await?;
        let last = u64::from_be_bytes(capacity[..8].try_into().expect("eight bytes"));
        device.size = (last + 1) * BLOCK;
        Ok(device)
    }

    async fn execute(&self, cdb: Vec<u8>, data: Data) -> volmux_iscsi_initiator::Result<Bytes> {
        // The first command after a login may be told of it.
        for _ in 0..3 {
            let command = Command {
                cdb: cdb.clone(),
                data: data.clone(),
                ..Command::default()
            };
            let reply = self.session.execute(self.lun, command).await?;
            if reply.status == 0 {
                return Ok(reply.data);
            }
            assert_eq!(reply.sense[2] & 0xf, 6, "{reply:?}");
        }
        panic!("unit attention again and again");
    }

    async fn block_command(
        &self,
        code: u8,
        offset: u64,
        length: usize,
        data: Data,
    ) -> Result<Bytes> {
        assert!(offset.is_multiple_of(BLOCK) && (length as u64).is_multiple_of(BLOCK));
        let mut cdb = vec![0; 16];
        cdb[0] = code;
        cdb[2..10].copy_from_slice(&(offset / BLOCK).to_be_bytes());
        cdb[10..14].copy_from_slice(&(length as u32 / BLOCK as u32).to_be_bytes());
        let done = self.execute(cdb, data).await;
        done.map_err(|error| Error::new(ErrorKind::Unavailable, "test").with_source(error))
    }
}

/// A session with what was attached, which has to be the unit that is meant.
pub async fn log_in(attachment: &Attachment) -> volmux_iscsi_initiator::Result<(Session, u64)> {
    let AttachTarget::Iscsi {
        portal,
        target,
        lun,
        serial,
        chap,
        mutual_chap,
    } = &attachment.target
    else {
        panic!("{attachment:?}");
    };
    let mut options = Options::new(portal, attachment.holder.as_str());
    options.target = Some(target.clone());
    options.chap = chap.as_ref().map(credentials);
    options.mutual_chap = mutual_chap.as_ref().map(credentials);
    let session = Session::login(options).await?;
    let inquiry = Command {
        // INQUIRY for page 80h, SPC-4 section 7.8.
        cdb: vec![0x12, 1, 0x80, 0, 255, 0],
        data: Data::Read(255),
        ..Command::default()
    };
    let reply = session.execute(*lun, inquiry).await?;
    assert_eq!(reply.status, 0, "{reply:?}");
    let found = String::from_utf8_lossy(&reply.data[4..]);
    assert_eq!(found.trim_matches(['\0', ' ']), serial);
    Ok((session, *lun))
}

fn credentials(of: &ChapReference) -> Credentials {
    let secret = std::fs::read_to_string(&of.secret).expect("the secret");
    Credentials::new(&of.user, secret.trim_end().as_bytes())
}

impl Drop for Device {
    fn drop(&mut self) {
        let (array, volume, holder) =
            (self.array.clone(), self.volume.clone(), self.holder.clone());
        tokio::spawn(async move { array.detach_volume(&volume, &holder).await });
    }
}

#[async_trait]
impl BlockDevice for Device {
    fn name(&self) -> &VolumeName {
        &self.volume
    }

    fn size(&self) -> u64 {
        self.size
    }

    fn access(&self) -> Access {
        self.access
    }

    async fn refresh(&self) -> Result<u64> {
        Ok(self.size)
    }

    async fn read_at(&self, offset: u64, length: usize) -> Result<Bytes> {
        let data = Data::Read(length as u32);
        self.block_command(0x88, offset, length, data).await
    }

    async fn write_at(&self, offset: u64, data: Bytes) -> Result<()> {
        assert_eq!(self.access, Access::ReadWrite);
        let length = data.len();
        let written = self.block_command(0x8a, offset, length, Data::Write(data));
        written.await.map(drop)
    }

    async fn flush(&self) -> Result<()> {
        self.block_command(0x91, 0, 0, Data::None).await.map(drop)
    }

    async fn discard(&self, _range: ByteRange) -> Result<()> {
        Err(Error::new(ErrorKind::Unsupported, "discard"))
    }

    async fn write_zeroes(&self, _range: ByteRange, _options: ZeroOptions) -> Result<()> {
        Err(Error::new(ErrorKind::Unsupported, "write_zeroes"))
    }

    async fn extents(&self, range: ByteRange) -> Result<ExtentStream> {
        let all = stream::iter([Ok(range)]);
        Ok(ExtentStream::new(Grade::Superset, BLOCK, all))
    }
}
