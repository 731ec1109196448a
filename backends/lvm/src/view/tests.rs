//! What becomes of reports.

use super::*;
use crate::report::Report;

const A: &str = "volmux.id=00000000-0000-0000-0000-00000000000a";

fn report() -> Report {
    let json = include_bytes!("../report/lvs.json");
    let mut report = crate::report::lvs(json).expect("right").expect("some");
    report.lvs.retain(|lv| !names::is_hidden(&lv.name));
    for lv in &mut report.lvs {
        Arc::make_mut(lv).tags.clear();
    }
    report
}

fn view_of(report: Report) -> Result<View> {
    View::new("test", &LvmConfig::thin("vg", "pool"), report)
}

/// The recorded thin volume, with another name and other tags.
fn thin(report: &Report, name: &str, tags: &[&str]) -> Lv {
    let mut lv = Lv::clone(&report.lvs[0]);
    name.clone_into(&mut lv.name);
    lv.tags = tags.iter().map(ToString::to_string).collect();
    lv
}

/// The view of these thin volumes.
fn view(lvs: &[(&str, &[&str])]) -> View {
    let mut report = report();
    let made = lvs
        .iter()
        .map(|(name, tags)| thin(&report, name, tags).into())
        .collect::<Vec<Arc<_>>>();
    report.lvs.retain(|lv| lv.name != "a");
    report.lvs.extend(made);
    view_of(report).expect("right")
}

fn names(view: &View) -> Vec<&str> {
    view.volumes.keys().map(VolumeName::as_str).collect()
}

fn name(name: &str) -> VolumeName {
    VolumeName::new(name).expect("a name")
}

#[test]
fn tagged_volumes_of_the_pool_are_volumes() {
    let found = view(&[("a", &[A]), ("b", &["production"]), ("c", &["volmux.id=x"])]);
    assert_eq!(names(&found), ["a"]);
    assert_eq!(found.foreign.len(), 1);
    assert_eq!(found.damaged.len(), 1);
    let error = found
        .get("test", &name("c"))
        .expect_err("its tags are wrong");
    assert_eq!(error.kind(), ErrorKind::Corrupt);
    let error = found
        .get("test", &name("thick"))
        .expect_err("it is not in the pool");
    assert_eq!(error.kind(), ErrorKind::NotFound);
    assert!(found.report.find("thick").is_some());
}

#[test]
fn what_is_half_made_is_no_volume() {
    let found = view(&[("a", &[A, "volmux.making"])]);
    assert!(names(&found).is_empty());
    assert!(found.half_made.contains_key(&name("a")));
}

#[test]
fn a_shrinking_volume_has_its_new_size() {
    let found = view(&[("a", &[A, "volmux.shrinking=65536"])]);
    assert_eq!(found.volumes[&name("a")].size().bytes(), 65536);
    assert_eq!(found.provisioned().bytes(), 65536);
}

#[test]
fn a_revert_takes_effect_when_the_old_content_gives_the_name_up() {
    let new = ".volmux-revert-00000000-0000-0000-0000-00000000000a";
    let old = ".volmux-old-00000000-0000-0000-0000-00000000000a";
    let reverting: &[&str] = &[A, "volmux.naming=a"];

    let before = view(&[("a", &[A]), (new, reverting)]);
    assert_eq!(before.volumes[&name("a")].lv.name, "a");
    assert_eq!(before.leftovers.len(), 1);

    let between = view(&[(old, &[A]), (new, reverting)]);
    assert_eq!(between.volumes[&name("a")].lv.name, new);
    assert_eq!(between.leftovers[0].name, old);

    let after = view(&[(old, &[A]), ("a", reverting)]);
    assert_eq!(after.volumes[&name("a")].lv.name, "a");
    assert_eq!(after.leftovers[0].name, old);
}

#[test]
fn the_content_of_a_volume_whose_name_was_taken_is_no_leftover() {
    let new = ".volmux-revert-00000000-0000-0000-0000-00000000000a";
    let old = ".volmux-old-00000000-0000-0000-0000-00000000000a";
    let reverting: &[&str] = &[A, "volmux.naming=a"];
    for taken_by in [&["production"][..], &[]] {
        let found = view(&[(old, &[A]), (new, reverting), ("a", taken_by)]);
        assert!(found.leftovers.is_empty() && names(&found).is_empty());
        let damaged: Vec<&str> = found.damaged.iter().map(|(lv, _)| &*lv.name).collect();
        assert_eq!(damaged, [old, new]);
    }
}

#[test]
fn a_volume_with_a_name_that_volmux_does_not_allow_is_no_leftover() {
    for hidden in [".a", "+a", ".volmux-mine"] {
        let found = view(&[(hidden, &[A])]);
        assert!(found.leftovers.is_empty(), "{hidden}");
        assert_eq!(found.damaged.len(), 1, "{hidden}");
    }
}

#[test]
fn a_volume_that_is_renamed_in_the_middle_of_a_revert_is_not_there_twice() {
    let new = ".volmux-revert-00000000-0000-0000-0000-00000000000a";
    let found = view(&[("b", &[A]), (new, &[A, "volmux.naming=a"])]);
    assert_eq!(names(&found), ["b"]);
    assert_eq!(found.leftovers[0].name, new);
}

#[test]
fn wrong_pools_are_refused() {
    let pool = |pool: &str| LvmConfig::thin("vg", pool);
    let missing = View::new("test", &pool("other"), report()).expect_err("missing");
    assert_eq!(missing.kind(), ErrorKind::NotFound);
    let wrong = View::new("test", &pool("thick"), report()).expect_err("no pool");
    assert_eq!(wrong.kind(), ErrorKind::InvalidConfig);
    let mut dirty = report();
    dirty.alter("pool", |pool| pool.zero = false);
    let refused = view_of(dirty.clone()).expect_err("it does not zero");
    assert_eq!(refused.kind(), ErrorKind::InvalidConfig);
    let mut config = pool("pool");
    config.single_tenant = true;
    View::new("test", &config, dirty).expect("one tenant");
}

#[test]
fn a_group_without_a_pool_holds_thick_volumes() {
    let mut report = report();
    report.alter("thick", |thick| thick.tags = vec![A.to_owned()]);
    let found = View::new("test", &LvmConfig::thick("vg"), report).expect("right");
    assert_eq!(names(&found), ["thick"]);
    let volume = found.volumes[&name("thick")].volume();
    assert_eq!(volume.provisioning, Provisioning::Thick);
    assert_eq!(volume.allocated, Some(volume.virtual_size));
}

#[test]
fn what_lvremove_would_take_along_is_seen() {
    let mut report = report();
    let thin_snapshot = thin(&report, "snapshot", &[]);
    let [mut old, mut external] = ["old", "external"].map(|name| thin(&report, name, &[]));
    let mut clone = thin(&report, "clone", &[]);
    "linear".clone_into(&mut old.segtype);
    old.pool.clear();
    "other".clone_into(&mut external.pool);
    let made_of = |mut lv: Lv, origin: &str| {
        origin.clone_into(&mut lv.origin);
        lv
    };
    "external".clone_into(&mut clone.origin);
    clone.pool.clone_from(&external.pool);
    report.lvs.push(made_of(thin_snapshot, "a").into());
    let found = view_of(report.clone()).expect("right");
    found
        .check_alone("test", "a")
        .expect("they are independent");
    assert!(!found.has_foreign_origin(&made_of(thin(&report, "x", &[]), "snapshot")));

    for dependent in [made_of(old, "a"), made_of(external, "a")] {
        let mut report = report.clone();
        report
            .lvs
            .extend([dependent.clone(), clone.clone()].map(Arc::new));
        let found = view_of(report).expect("right");
        let error = found
            .check_alone("test", "a")
            .expect_err("it would be lost");
        assert_eq!(error.get("others"), Some(&*dependent.name));
        assert!(found.has_foreign_origin(&dependent) && found.has_foreign_origin(&clone));
    }
}
