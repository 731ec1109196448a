//! The data files of a directory pool, as they are on the disk, and what QEMU says of them.

use std::collections::{BTreeMap, BTreeSet};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// The files in `data/` of a pool.
#[derive(Debug)]
pub struct Chains {
    /// All.
    pub files: BTreeSet<String>,
    /// Those that a volume needs.
    pub needed: BTreeSet<String>,
    /// The top file of each volume.
    pub tops: BTreeMap<String, String>,
    data: PathBuf,
}

impl Chains {
    /// As they are below the pool's root.
    ///
    /// # Panics
    /// If a record or a header can't be read.
    pub fn of(root: &Path) -> Chains {
        let data = root.join("data");
        let (mut needed, mut tops) = (BTreeSet::new(), BTreeMap::new());
        for record in names(&root.join("volumes")) {
            let text = std::fs::read_to_string(root.join("volumes").join(&record));
            let text = text.expect("a record");
            let id = text.split("\"data\":").nth(1).expect("a data id");
            let id = id.split('"').nth(1).expect("a quoted data id");
            let top = match id.ends_with(".qcow2") {
                true => id.to_owned(),
                false => format!("{id}.raw"),
            };
            let volume = record.trim_end_matches(".json").to_owned();
            tops.insert(volume, top.clone());
            let mut next = Some(top);
            while let Some(file) = next.take_if(|file| needed.insert(file.clone())) {
                next = below(&data.join(&file));
            }
        }
        Chains {
            files: names(&data),
            needed,
            tops,
            data,
        }
    }

    /// As [`of`](Self::of), once no image is open for writing any more: one is closed in the background.
    ///
    /// # Panics
    /// Also if one stays open.
    pub fn closed(root: &Path) -> Chains {
        for _ in 0..1000 {
            let chains = Chains::of(root);
            if !chains
                .files
                .iter()
                .any(|file| is_open(&chains.data.join(file)))
            {
                return chains;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        panic!("an image is still open");
    }

    /// How many files the volume `name` is made of.
    ///
    /// # Panics
    /// If there is no such volume.
    pub fn depth(&self, name: &str) -> usize {
        let mut next = Some(self.tops[name].clone());
        let mut depth = 0;
        while let Some(file) = next {
            depth += 1;
            next = below(&self.data.join(file));
        }
        depth
    }

    /// Has qemu-img look for damage and for lost clusters in each image.
    ///
    /// # Panics
    /// If it finds any.
    pub fn check(&self) {
        for file in self.files.iter().filter(|file| file.ends_with(".qcow2")) {
            let path = self.data.join(file);
            let mut command = Command::new("qemu-img");
            command.args(["check", "-f", "qcow2"]).arg(&path);
            let output = command.output().expect("qemu-img");
            let told = String::from_utf8_lossy(&output.stdout);
            let errors = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success(), "{file}: {told}{errors}");
        }
    }
}

/// Whether an image is marked as one that is written.
fn is_open(path: &Path) -> bool {
    let bytes = std::fs::read(path).unwrap_or_default();
    path.extension().is_some_and(|end| end == "qcow2")
        && bytes.get(79).is_some_and(|byte| byte & 1 == 1)
}

/// The file that the header of an image names.
fn below(path: &Path) -> Option<String> {
    if path.extension()? != "qcow2" {
        return None;
    }
    let bytes = std::fs::read(path).expect("an image");
    let number = |at: usize, length: usize| {
        let digits = bytes[at..at + length].iter();
        digits.fold(0, |number, byte| number << 8 | usize::from(*byte))
    };
    let (at, length) = (number(8, 8), number(16, 4));
    let name = bytes[at..at + length].to_vec();
    Some(String::from_utf8(name).expect("a name"))
}

fn names(dir: &Path) -> BTreeSet<String> {
    let entries = match std::fs::read_dir(dir) {
        Ok(entries) => entries,
        // Nothing was ever made in it.
        Err(error) if error.kind() == ErrorKind::NotFound => return BTreeSet::new(),
        Err(error) => panic!("{}: {error}", dir.display()),
    };
    let name = |entry: std::io::Result<std::fs::DirEntry>| {
        let name = entry.expect("an entry").file_name();
        name.into_string().expect("a name of ASCII")
    };
    entries.map(name).collect()
}
