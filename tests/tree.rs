//! What a directory holds, to see whether it changed.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// Every file below a directory, with what it is.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Tree(BTreeMap<String, Entry>);

#[derive(Debug, PartialEq, Eq)]
struct Entry {
    mode: u32,
    links: u64,
    inode: u64,
    content: Vec<u8>,
}

impl Tree {
    /// Looks at everything below `dir`, following no link.
    pub fn of(dir: &Path) -> Tree {
        let mut tree = Tree::default();
        tree.add(dir, dir);
        tree
    }

    fn add(&mut self, root: &Path, dir: &Path) {
        for entry in std::fs::read_dir(dir).expect("a directory") {
            let path = entry.expect("an entry").path();
            let metadata = path.symlink_metadata().expect("metadata");
            let content = if metadata.is_file() {
                std::fs::read(&path).expect("content")
            } else if metadata.is_symlink() {
                let target = path.read_link().expect("a link");
                target.into_os_string().into_encoded_bytes()
            } else {
                Vec::new()
            };
            let name = path.strip_prefix(root).expect("below the root");
            let entry = Entry {
                mode: metadata.mode(),
                links: metadata.nlink(),
                inode: metadata.ino(),
                content,
            };
            self.0.insert(name.display().to_string(), entry);
            if metadata.is_dir() {
                self.add(root, &path);
            }
        }
    }
}
