//! The modules for Hyper-V, parsed by the grammar of tree-sitter-powershell, and what is in them. No
//! registry has a PowerShell that runs here, and no Windows host was there: commands and parameters are held
//! against a list made from Microsoft's reference.

use std::collections::BTreeSet;

use tree_sitter::{Node, Parser, Tree};

use super::*;

const PATH: &str = r"\\store-1\disks\web's disk.vhdx";

fn parse(text: &str) -> Tree {
    let mut parser = Parser::new();
    let language = tree_sitter_powershell::LANGUAGE.into();
    parser.set_language(&language).expect("the grammar");
    parser.parse(text, None).expect("a tree")
}

/// Every node, depth first.
fn walk<'a>(node: Node<'a>, all: &mut Vec<Node<'a>>) {
    all.push(node);
    let mut cursor = node.walk();
    for child in node.children(&mut cursor) {
        walk(child, all);
    }
}

fn nodes<'a>(tree: &'a Tree, kind: &str) -> Vec<Node<'a>> {
    let mut all = Vec::new();
    walk(tree.root_node(), &mut all);
    all.retain(|node| node.kind() == kind);
    all
}

fn text<'a>(node: Node<'_>, source: &'a str) -> &'a str {
    &source[node.byte_range()]
}

fn vhdx(path: &str) -> RenderOptions {
    RenderOptions {
        vhdx: Some(path.into()),
        ..RenderOptions::default()
    }
}

/// Every module that can be rendered.
fn modules() -> Vec<(&'static str, String)> {
    let mut odd = iscsi(1, Some("o'brien \u{2019}$(x)`\u{1f600}"), Some("b"));
    if let AttachTarget::Iscsi { target, serial, .. } = &mut odd {
        target.push_str("'; Remove-VM *; '");
        serial.push_str("$(Remove-VM *)");
    }
    let of = |target, options: &RenderOptions| {
        let attached = attachment(Access::ReadWrite, target);
        let done = attached.render(Hypervisor::Hyperv, options);
        done.expect("rendered").text
    };
    let plain = RenderOptions::default();
    vec![
        ("plain", of(iscsi(1, None, None), &plain)),
        ("chap", of(iscsi(1, Some("host"), None), &plain)),
        ("mutual", of(iscsi(0, Some("host"), Some("array")), &plain)),
        ("odd", of(odd, &plain)),
        ("vhdx", of(file("/srv/web"), &vhdx(PATH))),
        ("vhdx-odd", of(block("/dev/web"), &vhdx("D:\\é $(x)'.VHDX"))),
    ]
}

#[test]
fn the_grammar_refuses_what_is_wrong() {
    for wrong in [
        "function A { param(",
        "if ($x { 'a' }",
        "$a = 'x",
        "$a = @(1, 2",
    ] {
        assert!(parse(wrong).root_node().has_error(), "{wrong}");
    }
}

#[test]
fn modules_are_in_the_grammar() {
    for (name, module) in modules() {
        let tree = parse(&module);
        let mut all = Vec::new();
        walk(tree.root_node(), &mut all);
        let wrong = all.iter().find(|node| node.is_error() || node.is_missing());
        assert!(
            wrong.is_none(),
            "{name}: {:?}\n{module}",
            wrong.map(|node| (node.start_position(), text(*node, &module)))
        );
        assert!(all.len() > 100, "{name}: {} nodes", all.len());
        assert!(module.is_ascii(), "{name}: in any code page");
    }
}

/// The commands that modules call, with the parameters that they are given: all in Microsoft's reference of
/// the modules Hyper-V, iSCSI, Storage, Microsoft.PowerShell.Core, .Management, .Security and .Utility.
const KNOWN: &[(&str, &[&str])] = &[
    (
        "Add-VMHardDiskDrive",
        &["-VMName", "-ControllerType", "-DiskNumber", "-Path"],
    ),
    ("Connect-IscsiTarget", &[]),
    (
        "Disconnect-IscsiTarget",
        &["-SessionIdentifier", "-Confirm:$false"],
    ),
    ("Export-ModuleMember", &["-Function"]),
    ("ForEach-Object", &[]),
    ("Get-Content", &["-Raw", "-LiteralPath"]),
    ("Get-Credential", &["-UserName", "-Message"]),
    ("Get-Disk", &[]),
    ("Get-InitiatorPort", &[]),
    ("Get-IscsiSession", &[]),
    ("Get-IscsiTargetPortal", &[]),
    ("Get-VHD", &["-Path"]),
    ("Get-VM", &["-Name"]),
    ("Get-VMHardDiskDrive", &["-VMName"]),
    ("Get-VMSnapshot", &["-VMName"]),
    (
        "New-IscsiTargetPortal",
        &["-TargetPortalAddress", "-TargetPortalPortNumber"],
    ),
    ("Out-Null", &[]),
    ("Remove-VMHardDiskDrive", &[]),
    ("Set-Disk", &["-Number", "-IsOffline"]),
    ("Set-Service", &["-Name", "-StartupType"]),
    ("Set-StrictMode", &["-Version"]),
    ("Start-Service", &["-Name"]),
    ("Start-Sleep", &["-Seconds"]),
    ("Unregister-IscsiSession", &["-SessionIdentifier"]),
    ("Update-HostStorageCache", &[]),
    ("Update-IscsiTargetPortal", &[]),
    ("Where-Object", &[]),
];

#[test]
fn modules_call_what_there_is_and_nothing_that_a_name_smuggles_in() {
    let mut called = BTreeSet::new();
    for (name, module) in modules() {
        let tree = parse(&module);
        let own: BTreeSet<&str> = nodes(&tree, "function_name")
            .into_iter()
            .map(|node| text(node, &module))
            .collect();
        for function in ["Connect-VolmuxVolume", "Disconnect-VolmuxVolume"] {
            assert!(own.contains(function), "{name}: {own:?}");
        }
        for command in nodes(&tree, "command") {
            let named = command.child_by_field_name("command_name");
            let Some(named) = named.map(|node| text(node, &module)) else {
                panic!("{name}: {}", text(command, &module));
            };
            let words: Vec<&str> = text(command, &module).split_whitespace().collect();
            if own.contains(named) {
                continue;
            }
            let known = KNOWN.iter().find(|(command, _)| *command == named);
            let (command, parameters) =
                known.unwrap_or_else(|| panic!("{name}: {named} is not known"));
            called.insert(*command);
            let given = words.iter().filter(|word| word.starts_with('-'));
            for parameter in given.filter(|word| word.len() > 3) {
                let operator = ["-and", "-ne", "-eq", "-notcontains"].contains(parameter);
                assert!(
                    operator || parameters.contains(parameter),
                    "{name}: {named} {parameter}"
                );
            }
        }
    }
    let listed: BTreeSet<&str> = KNOWN.iter().map(|(command, _)| *command).collect();
    assert_eq!(called, listed, "the list holds what is called, and no more");
}

/// The value of a string between single quotes.
fn value(literal: &str) -> String {
    literal[1..literal.len() - 1].replace("''", "'")
}

#[test]
fn names_come_back_from_their_quotes() {
    for (name, module) in modules() {
        let tree = parse(&module);
        let literals: Vec<String> = nodes(&tree, "verbatim_string_characters")
            .into_iter()
            .map(|node| value(text(node, &module)))
            .collect();
        let wanted = match name {
            "odd" => "iqn.2026-11.org.volmux:web'; Remove-VM *; '",
            "vhdx" => PATH,
            _ => continue,
        };
        assert!(literals.iter().any(|l| l == wanted), "{name}: {literals:?}");
    }
}

#[test]
fn wrong_paths_of_images_are_refused() {
    for path in [
        "",
        "web.vhdx",
        "D:web.vhdx",
        "/srv/web.vhdx",
        r"D:\web.vhd",
        r"D:\web",
        r"\\store-1\web.vhdx",
        r"\\\a\web.vhdx",
        "D:\\a\nb.vhdx",
        r"D:\a*.vhdx",
        r"D:\[a].vhdx",
        r"D:\a`b.vhdx",
        "é:\\a.vhdx",
    ] {
        let error = Hypervisor::Hyperv.check(Access::ReadWrite, &vhdx(path));
        assert_eq!(
            error.expect_err(path).kind(),
            ErrorKind::InvalidInput,
            "{path}"
        );
    }
    for path in [PATH, r"d:\a\b.VHDX", r"\\192.0.2.1\share\b.vhdx"] {
        let checked = Hypervisor::Hyperv.check(Access::ReadWrite, &vhdx(path));
        checked.expect(path);
    }
    // Nobody else reads it as such.
    let other = Hypervisor::Qemu.check(Access::ReadWrite, &vhdx(PATH));
    assert_eq!(other.expect_err("refused").kind(), ErrorKind::InvalidInput);
}
