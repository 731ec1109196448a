//! Nothing but this crate links what is under the AGPL.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

use serde_json::Value;

const OURS: &str = "volmux-iscsi-client-rs";
const THEIRS: &str = "iscsi-client-rs";

/// The packages of the workspace and of all that they depend on, with every feature, on this
/// machine's platform.
struct Packages {
    /// By identifier: name and licence.
    all: BTreeMap<String, (String, String)>,
    /// What each depends on, be it to build or to test.
    depends: BTreeMap<String, Vec<String>>,
    members: Vec<String>,
    built_by_default: Vec<String>,
}

fn text(value: &Value) -> String {
    value.as_str().expect("a string").to_owned()
}

fn texts(value: &Value) -> Vec<String> {
    let list = value.as_array().expect("a list");
    list.iter().map(text).collect()
}

impl Packages {
    fn find() -> Packages {
        let manifest = concat!(env!("CARGO_MANIFEST_DIR"), "/../../../Cargo.toml");
        let platform = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
        let mut command = Command::new(env!("CARGO"));
        command
            .args([
                "metadata",
                "--format-version",
                "1",
                "--locked",
                "--all-features",
            ])
            .args(["--filter-platform", &platform, "--manifest-path", manifest]);
        let output = command.output().expect("cargo starts");
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{command:?}: {errors}");
        let found: Value = serde_json::from_slice(&output.stdout).expect("JSON");
        let packages = found["packages"].as_array().expect("a list");
        let package = |package: &Value| {
            let licence = package["license"].as_str().unwrap_or("none is told");
            (
                text(&package["id"]),
                (text(&package["name"]), licence.to_owned()),
            )
        };
        let nodes = found["resolve"]["nodes"].as_array().expect("a list");
        let node = |node: &Value| (text(&node["id"]), texts(&node["dependencies"]));
        Packages {
            all: packages.iter().map(package).collect(),
            depends: nodes.iter().map(node).collect(),
            members: texts(&found["workspace_members"]),
            built_by_default: texts(&found["workspace_default_members"]),
        }
    }

    fn name(&self, id: &str) -> &str {
        &self.all[id].0
    }

    /// These, and all that they depend on.
    fn below<'a>(&'a self, roots: impl IntoIterator<Item = &'a String>) -> BTreeSet<&'a str> {
        let mut found = BTreeSet::new();
        let mut left: Vec<&str> = roots.into_iter().map(String::as_str).collect();
        while let Some(id) = left.pop() {
            if found.insert(id) {
                left.extend(self.depends[id].iter().map(String::as_str));
            }
        }
        found
    }

    /// Those of them whose licence leaves no way around the AGPL, GPL or LGPL.
    fn copyleft<'a>(&'a self, ids: &BTreeSet<&'a str>) -> BTreeSet<&'a str> {
        let bound = |id: &&&str| is_copyleft(&self.all[**id].1);
        ids.iter().filter(bound).map(|id| self.name(id)).collect()
    }
}

fn is_copyleft(licence: &str) -> bool {
    let mut choices = licence.split(" OR ").flat_map(|choice| choice.split('/'));
    // Of an expression with AND as well, each part is taken to be needed.
    match licence.contains(" AND ") {
        true => choices.any(|choice| choice.contains("GPL")),
        false => choices.all(|choice| choice.contains("GPL")),
    }
}

#[test]
fn licences_are_understood() {
    for licence in [
        "AGPL-3.0-or-later",
        "LGPL-2.1",
        "MIT AND GPL-2.0",
        "GPL-2.0 OR GPL-3.0",
    ] {
        assert!(is_copyleft(licence), "{licence}");
    }
    for licence in [
        "MIT",
        "MIT/Apache-2.0",
        "MIT OR LGPL-2.1-or-later",
        "MIT AND BSD-3-Clause",
    ] {
        assert!(!is_copyleft(licence), "{licence}");
    }
}

#[test]
fn only_this_crate_links_what_is_under_the_agpl() {
    let packages = Packages::find();
    let (own, others): (Vec<_>, Vec<_>) = packages
        .members
        .iter()
        .partition(|id| packages.name(id) == OURS);
    assert_eq!(own.len(), 1);
    // That it is found here proves that it would be found below.
    let found = packages.copyleft(&packages.below(own));
    assert_eq!(found, BTreeSet::from([OURS, THEIRS]));

    let shipped: BTreeSet<_> = others.iter().map(|id| packages.name(id)).collect();
    for name in ["volmux", "volmux-cli", "volmux-gateway", "volmux-iscsi"] {
        assert!(shipped.contains(name), "{name} is no member: {shipped:?}");
    }
    let below = packages.below(others);
    assert!(below.len() > 100, "only {} packages", below.len());
    assert_eq!(packages.copyleft(&below), BTreeSet::new());
    let linked = below
        .iter()
        .find(|id| [OURS, THEIRS].contains(&packages.name(id)));
    assert_eq!(linked, None);
}

#[test]
fn it_is_not_built_by_default() {
    let packages = Packages::find();
    let names = |ids: &[String]| -> BTreeSet<String> {
        ids.iter().map(|id| packages.name(id).to_owned()).collect()
    };
    let (all, default) = (names(&packages.members), names(&packages.built_by_default));
    let left_out: Vec<_> = all.difference(&default).collect();
    assert_eq!(left_out, [OURS], "default-members in Cargo.toml");
}
