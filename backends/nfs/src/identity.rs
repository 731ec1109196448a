//! Acting as another user, for servers that take root for nobody.

use std::io;
use std::marker::PhantomData;

/// The user and the group that a pool's files belong to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
}

const ROOT: Identity = Identity { uid: 0, gid: 0 };

/// The calling thread acts as somebody else on file systems until this is dropped (setfsuid(2)).
#[derive(Debug)]
pub struct Acting {
    before: Option<Identity>,
    /// It is about this thread.
    _here: PhantomData<*const ()>,
}

/// Acts as `identity`, if there is one to act as.
///
/// # Errors
/// `EPERM` if this process may not.
pub fn act_as(identity: Option<Identity>) -> io::Result<Acting> {
    let mut acting = Acting {
        before: None,
        _here: PhantomData,
    };
    if let Some(identity) = identity {
        acting.before = Some(set(identity));
        // The calls don't tell whether they did it.
        if set(identity) != identity {
            return Err(io::Error::from_raw_os_error(libc::EPERM));
        }
    }
    Ok(acting)
}

/// Acts as root, where `identity` is acted as, for what is this host's own.
pub fn act_as_root(identity: Option<Identity>) -> io::Result<Acting> {
    act_as(identity.map(|_| ROOT))
}

impl Drop for Acting {
    fn drop(&mut self) {
        if let Some(before) = self.before {
            set(before);
        }
    }
}

/// Returns what it was before.
fn set(Identity { uid, gid }: Identity) -> Identity {
    // SAFETY: these change two numbers of the calling thread, and no memory.
    let (uid, gid) = unsafe { (libc::setfsuid(uid), libc::setfsgid(gid)) };
    Identity {
        uid: uid.cast_unsigned(),
        gid: gid.cast_unsigned(),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    fn owner(name: &str, dir: &std::path::Path) -> (u32, u32) {
        let path = dir.join(name);
        std::fs::write(&path, b"").expect("write");
        let metadata = path.metadata().expect("stat");
        (metadata.uid(), metadata.gid())
    }

    #[test]
    fn files_belong_to_who_is_acted_as() {
        let dir = tempfile::tempdir().expect("a directory");
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o777);
        std::fs::set_permissions(dir.path(), mode).expect("chmod");
        let own = owner("own", dir.path());
        assert_eq!(own.0, 0, "this test needs root");
        let other = Some(Identity {
            uid: 4321,
            gid: 1234,
        });
        {
            let _acting = act_as(other).expect("root may");
            assert_eq!(owner("other", dir.path()), (4321, 1234));
            {
                let _root = act_as_root(other).expect("root may");
                assert_eq!(owner("root", dir.path()), (0, 0));
            }
            assert_eq!(owner("again", dir.path()), (4321, 1234));
        }
        assert_eq!(owner("after", dir.path()), own);
        let _nobody = act_as(None).expect("nothing to do");
        assert_eq!(owner("as before", dir.path()), own);
    }
}
