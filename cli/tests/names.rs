//! docs/names.md: each operation has a name in Rust, in C, in Python and on the command line, and
//! none is missing.
#![allow(missing_docs)]

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;

/// A line of the table.
struct Row {
    rust: Vec<String>,
    c: Vec<String>,
    python: Vec<String>,
    command: Vec<String>,
    text: String,
}

fn read(path: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// What stands in backquotes.
fn names(cell: &str) -> Vec<String> {
    cell.split('`')
        .skip(1)
        .step_by(2)
        .map(str::to_owned)
        .collect()
}

fn table() -> Vec<Row> {
    let text = read("docs/names.md");
    let rows = text
        .lines()
        .filter(|line| line.starts_with("| ") && line.contains('`'));
    rows.map(|line| {
        let cells: Vec<&str> = line.trim_matches('|').split('|').collect();
        let [_, rust, c, python, command] = cells[..] else {
            panic!("five columns: {line}");
        };
        Row {
            rust: names(rust),
            c: names(c),
            python: names(python),
            command: names(command),
            text: line.to_owned(),
        }
    })
    .collect()
}

/// The functions that `text` declares below `head`, up to the end of that block.
fn declared(text: &str, head: &str) -> BTreeSet<String> {
    let (_, block) = text.split_once(head).unwrap_or_else(|| panic!("{head}"));
    let block = block.split("\n}").next().unwrap_or(block);
    let lines = block.lines().filter(|line| line.starts_with("    "));
    let functions = lines.filter_map(|line| {
        let line = line.trim_start();
        let line = line.strip_prefix("async ").unwrap_or(line);
        line.strip_prefix("fn ")?.split(['(', '<']).next()
    });
    functions.map(str::to_owned).collect()
}

fn in_rust() -> BTreeSet<String> {
    let pool = read("core/src/pool.rs");
    let mut all = declared(&pool, "pub trait Pool: ");
    all.append(&mut declared(&pool, "pub trait PoolExt: "));
    all.append(&mut declared(
        &read("core/src/device.rs"),
        "pub trait BlockDevice: ",
    ));
    all.insert("snapshot_group".to_owned());
    // Of a language's own: the same object, as another type.
    all.remove("as_pool");
    all
}

#[test]
fn every_operation_of_the_core_is_in_the_table() {
    let wanted = in_rust();
    assert!(
        wanted.contains("snapshot_volume") && wanted.contains("write_zeroes"),
        "{wanted:?}"
    );
    let there: BTreeSet<String> = table()
        .into_iter()
        .flat_map(|row| row.rust)
        .map(|name| name.rsplit("::").next().unwrap_or_default().to_owned())
        .collect();
    let missing: Vec<_> = wanted.difference(&there).collect();
    assert!(
        missing.is_empty(),
        "docs/names.md does not have {missing:?}"
    );
}

#[test]
fn every_operation_has_a_name_in_every_language() {
    let rows = table();
    assert!(rows.len() > 30, "{} rows", rows.len());
    for row in rows {
        for cell in [&row.rust, &row.c, &row.python, &row.command] {
            assert!(!cell.is_empty(), "a name is missing: {}", row.text);
        }
    }
}

#[test]
fn the_names_are_those_of_the_header() {
    let header = read("ffi/include/volmux.h");
    for name in table().iter().flat_map(|row| &row.c) {
        let declared = [
            format!("{name}("),
            format!("{name} ("),
            format!("struct {name}"),
        ];
        assert!(declared.iter().any(|text| header.contains(text)), "{name}");
    }
}

#[test]
fn the_names_are_those_of_the_python_module() {
    let parts = ["_volmux.pyi", "_values.py", "__init__.py"];
    let stubs: String = parts
        .iter()
        .map(|part| read(&format!("python/lib/volmux/{part}")))
        .collect();
    for name in table().iter().flat_map(|row| &row.python) {
        let name = name.rsplit('.').next().unwrap_or_default();
        let there = [
            format!("def {name}("),
            format!("{name}:"),
            format!("class {name}"),
        ];
        assert!(there.iter().any(|text| stubs.contains(text)), "{name}");
    }
}

#[test]
fn the_names_are_those_of_the_program() {
    let mut known = BTreeSet::new();
    for command in table().iter().flat_map(|row| &row.command) {
        let mut words: Vec<&str> = command.split(' ').collect();
        words.retain(|word| !word.starts_with('-'));
        let help = Command::new(env!("CARGO_BIN_EXE_volmux"))
            .args(&words)
            .arg("--help")
            .output()
            .expect("the program starts");
        let text = String::from_utf8_lossy(&help.stdout).into_owned();
        assert!(help.status.success(), "volmux {command}: {text}");
        for option in command.split(' ').filter(|word| word.starts_with('-')) {
            assert!(text.contains(option), "volmux {command}");
        }
        known.insert(words.join(" "));
    }
    for group in ["pool", "volume"] {
        let help = Command::new(env!("CARGO_BIN_EXE_volmux"))
            .args([group, "--help"])
            .output();
        let text = String::from_utf8_lossy(&help.expect("the program starts").stdout).into_owned();
        let (_, list) = text.split_once("Commands:\n").expect("a list of commands");
        let list = list.split("\n\n").next().unwrap_or(list);
        // What is indented further goes on with the line before.
        let lines = list.lines().filter_map(|line| line.strip_prefix("  "));
        let lines = lines.filter(|line| !line.starts_with(' '));
        let commands = lines.filter_map(|line| line.split_whitespace().next());
        for command in commands.filter(|&command| command != "help") {
            let command = format!("{group} {command}");
            assert!(
                known.contains(&command),
                "docs/names.md does not have volmux {command}"
            );
        }
    }
}
