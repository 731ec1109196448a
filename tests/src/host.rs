//! What a host does with a volume that is attached to it.

use std::fs::File;
use std::os::unix::fs::FileExt;

use bytes::Bytes;
use volmux::{AttachTarget, Attachment};
use volmux_iscsi_initiator::{Command, Credentials, Data, Options, Session};

/// The disk that a host sees.
#[derive(Debug)]
pub enum HostDisk {
    /// A file or a block device.
    File(File),
    /// A logical unit.
    Unit(Box<Unit>),
}

/// A logical unit that a host is logged in to.
#[derive(Debug)]
pub struct Unit {
    session: Session,
    lun: u64,
    block: u32,
}

impl HostDisk {
    /// Opens what `attached` leads to.
    ///
    /// # Panics
    /// If it can't be opened, or is another disk than it is said to be.
    pub async fn open(attached: &Attachment) -> HostDisk {
        match &attached.target {
            AttachTarget::File { path } | AttachTarget::BlockDevice { path } => {
                assert!(path.is_absolute());
                let file = File::options().read(true).write(true).open(path);
                HostDisk::File(file.expect("the host opens the target"))
            }
            AttachTarget::Iscsi {
                portal,
                target,
                lun,
                serial,
                chap,
                mutual_chap,
            } => {
                let credentials = |chap: &Option<volmux::ChapReference>| {
                    let chap = chap.as_ref()?;
                    let secret = std::fs::read_to_string(&chap.secret).expect("the secret's file");
                    Some(Credentials::new(&chap.user, secret.trim_end()))
                };
                let mut options = Options::new(portal, attached.holder.as_str());
                options.target = Some(target.clone());
                options.chap = credentials(chap);
                options.mutual_chap = credentials(mutual_chap);
                let session = Session::login(options).await.expect("the host logs in");
                let unit = Unit::open(session, *lun, serial).await;
                HostDisk::Unit(Box::new(unit))
            }
            _ => panic!("a target that hosts can't open as it is: {attached:?}"),
        }
    }

    /// All that is on it.
    ///
    /// # Panics
    /// If it can't be read.
    pub async fn read_all(&self) -> Vec<u8> {
        match self {
            HostDisk::File(file) => {
                let mut file = file;
                let mut data = Vec::new();
                std::io::Read::read_to_end(&mut file, &mut data).expect("the host reads");
                data
            }
            HostDisk::Unit(unit) => unit.read_all().await,
        }
    }

    /// Writes whole blocks at the start, and flushes.
    ///
    /// # Panics
    /// If that fails.
    pub async fn write_at_start(&self, data: Bytes) {
        match self {
            HostDisk::File(file) => {
                file.write_all_at(&data, 0).expect("the host writes");
                file.sync_all().expect("the host flushes");
            }
            HostDisk::Unit(unit) => {
                let mut cdb = vec![0x8a, 0, 0, 0, 0, 0, 0, 0, 0, 0];
                cdb.extend((data.len() as u32 / unit.block).to_be_bytes());
                cdb.extend([0, 0]);
                unit.good(cdb, Data::Write(data)).await;
                let mut flush = vec![0x91];
                flush.resize(16, 0);
                unit.good(flush, Data::None).await;
            }
        }
    }

    /// Lets it go.
    ///
    /// # Panics
    /// If the target does not say goodbye.
    pub async fn close(self) {
        if let HostDisk::Unit(unit) = self {
            unit.session.logout().await.expect("the host logs out");
        }
    }
}

impl Unit {
    async fn open(session: Session, lun: u64, serial: &str) -> Unit {
        let mut unit = Unit {
            session,
            lun,
            block: 512,
        };
        let page = unit
            .good(vec![0x12, 1, 0x80, 0, 252, 0], Data::Read(252))
            .await;
        let length = usize::from(page[3]);
        let found = String::from_utf8_lossy(&page[4..4 + length]);
        // LIO ends it with NUL.
        let found = found.trim_matches(['\0', ' ']);
        assert_eq!(found, serial, "the unit's serial number");
        let (_, block) = unit.capacity().await;
        unit.block = block;
        unit
    }

    async fn capacity(&self) -> (u64, u32) {
        let mut cdb = vec![0x9e, 0x10, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 32, 0, 0];
        cdb.truncate(16);
        let answer = self.good(cdb, Data::Read(32)).await;
        let last = u64::from_be_bytes(answer[..8].try_into().expect("eight bytes"));
        let block = u32::from_be_bytes(answer[8..12].try_into().expect("four bytes"));
        (last + 1, block)
    }

    async fn read_all(&self) -> Vec<u8> {
        let (blocks, block) = self.capacity().await;
        let step = (256 << 10) / block;
        let mut data = Vec::new();
        let mut lba = 0u64;
        while lba < blocks {
            let count = u64::from(step).min(blocks - lba) as u32;
            let mut cdb = vec![0x88, 0];
            cdb.extend(lba.to_be_bytes());
            cdb.extend(count.to_be_bytes());
            cdb.extend([0, 0]);
            data.extend_from_slice(&self.good(cdb, Data::Read(count * block)).await);
            lba += u64::from(count);
        }
        data
    }

    /// Sends a command, again after each unit attention, and gives what was read.
    async fn good(&self, cdb: Vec<u8>, data: Data) -> Bytes {
        for _ in 0..5 {
            let command = Command {
                cdb: cdb.clone(),
                data: data.clone(),
                ..Command::default()
            };
            let reply = self.session.execute(self.lun, command).await;
            let reply = reply.expect("the target answers");
            if reply.status == 0 {
                return reply.data;
            }
            let attention = reply.sense.get(2).is_some_and(|byte| byte & 0x0f == 6);
            assert!(attention, "{cdb:02x?}: {reply:?}");
        }
        panic!("{cdb:02x?}: unit attention after unit attention");
    }
}
