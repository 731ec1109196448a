//! Finding and removing what interrupted work left behind, and what is damaged.

use std::ffi::{CString, c_char};
use std::mem::MaybeUninit;

use volmux::{AuditOptions, AuditReport, Finding};

use crate::control::{Running, vmx_control};
use crate::enums::vmx_finding;
use crate::error::vmx_error;
use crate::guard::{self, free};
use crate::plain::{Plain, VMX_NONE};
use crate::pool::vmx_pool;
use crate::status::vmx_status;
use crate::text::{shown, text};

/// How an audit goes. All zeros: it only looks.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct vmx_audit_options {
    /// 1: remove leftovers and finish half-done work.
    pub repair: u32,
}

// SAFETY: a number of 4 bytes.
unsafe impl Plain for vmx_audit_options {
    const FIRST_SIZE: usize = 4;
}

/// What an audit or a scrub found. It holds nothing of the pool. Any number of threads may read it
/// at once.
///
/// All accessors take NULL, as a report without findings.
#[derive(Debug)]
pub struct vmx_report {
    report: AuditReport,
    texts: Vec<(CString, CString)>,
}

impl vmx_report {
    fn give(out: &mut MaybeUninit<*mut vmx_report>, report: AuditReport) {
        let texts = |f: &Finding| (text(f.object.as_str()), text(f.detail.as_str()));
        let texts = report.findings.iter().map(texts).collect();
        out.write(Box::into_raw(Box::new(vmx_report { report, texts })));
    }
}

/// Finds what interrupted work left behind and, if asked, removes it. Safe beside running work.
/// `options` may be NULL; `options_size` is its size.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vmx_audit_pool(
    pool: Option<&vmx_pool>,
    options: *const vmx_audit_options,
    options_size: usize,
    report: Option<&mut MaybeUninit<*mut vmx_report>>,
    err: Option<&mut MaybeUninit<*mut vmx_error>>,
) -> vmx_status {
    guard::call("audit", err, |call| {
        let pool = vmx_pool::of(call, pool)?;
        let repair = match options.is_null() {
            true => false,
            false => {
                // SAFETY: structures have the size that callers say.
                let given = unsafe { call.input(options, options_size, "options")? };
                call.flag(given.repair, "repair")?
            }
        };
        let out = call.out(report, "report")?;
        vmx_report::give(out, pool.audit(AuditOptions { repair })?);
        Ok(())
    })
}

/// Reads everything that is stored and verifies it, and tells of what is damaged. Changes nothing.
/// `VMX_UNSUPPORTED` where the store keeps nothing to verify data by. `control` may be NULL.
#[unsafe(no_mangle)]
pub extern "C" fn vmx_scrub_pool(
    pool: Option<&vmx_pool>,
    control: Option<&vmx_control>,
    report: Option<&mut MaybeUninit<*mut vmx_report>>,
    err: Option<&mut MaybeUninit<*mut vmx_error>>,
) -> vmx_status {
    guard::call("scrub", err, |call| {
        let pool = vmx_pool::of(call, pool)?;
        let out = call.out(report, "report")?;
        let running = Running::new(control);
        vmx_report::give(out, pool.scrub(running.control())?);
        Ok(())
    })
}

/// Whether nothing is left that is wrong; what is merely foreign does not count.
#[unsafe(no_mangle)]
pub extern "C" fn vmx_report_is_clean(report: Option<&vmx_report>) -> bool {
    report.is_none_or(|report| report.report.is_clean())
}

/// Number of volumes that were looked at.
#[unsafe(no_mangle)]
pub extern "C" fn vmx_report_volumes(report: Option<&vmx_report>) -> u64 {
    report.map_or(0, |report| report.report.volumes)
}

/// Number of findings.
#[unsafe(no_mangle)]
pub extern "C" fn vmx_report_finding_count(report: Option<&vmx_report>) -> usize {
    report.map_or(0, |report| report.texts.len())
}

fn finding(report: Option<&vmx_report>, index: usize) -> Option<&Finding> {
    report.and_then(|report| report.report.findings.get(index))
}

/// What sort of thing a finding is, counted from 0; `VMX_FINDING_OTHER` past the last.
#[unsafe(no_mangle)]
pub extern "C" fn vmx_report_finding_kind(
    report: Option<&vmx_report>,
    index: usize,
) -> vmx_finding {
    let none = vmx_finding::VMX_FINDING_OTHER;
    finding(report, index).map_or(none, |finding| finding.kind.into())
}

/// The volume, file or object; NULL past the last.
#[unsafe(no_mangle)]
pub extern "C" fn vmx_report_finding_object(
    report: Option<&vmx_report>,
    index: usize,
) -> *const c_char {
    shown(
        report
            .and_then(|report| report.texts.get(index))
            .map(|t| &t.0),
    )
}

/// What is the matter, in a sentence; NULL past the last.
#[unsafe(no_mangle)]
pub extern "C" fn vmx_report_finding_detail(
    report: Option<&vmx_report>,
    index: usize,
) -> *const c_char {
    shown(
        report
            .and_then(|report| report.texts.get(index))
            .map(|t| &t.1),
    )
}

/// What it occupies, in bytes; `VMX_NONE` where that is not known.
#[unsafe(no_mangle)]
pub extern "C" fn vmx_report_finding_bytes(report: Option<&vmx_report>, index: usize) -> u64 {
    let bytes = finding(report, index).and_then(|finding| finding.bytes);
    bytes.map_or(VMX_NONE, |bytes| bytes.bytes())
}

/// Whether this audit put it right.
#[unsafe(no_mangle)]
pub extern "C" fn vmx_report_finding_is_repaired(
    report: Option<&vmx_report>,
    index: usize,
) -> bool {
    finding(report, index).is_some_and(|finding| finding.repaired)
}

/// Frees a report. NULL is fine.
#[unsafe(no_mangle)]
pub extern "C" fn vmx_report_free(report: Option<Box<vmx_report>>) {
    free(report);
}

/// What a collection of garbage gave back.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct vmx_collected {
    /// Bytes that can be used again, as the store counts them.
    pub freed: u64,
    /// Files or objects that were removed.
    pub objects: u64,
}

// SAFETY: two numbers of 8 bytes.
unsafe impl Plain for vmx_collected {
    const FIRST_SIZE: usize = 16;
}

/// Gives back now what nothing uses any more, and what the pool would otherwise give back in the
/// background, or never. Safe beside running work. `collected` may be NULL; `collected_size` is its
/// size.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vmx_collect_garbage(
    pool: Option<&vmx_pool>,
    collected: *mut vmx_collected,
    collected_size: usize,
    err: Option<&mut MaybeUninit<*mut vmx_error>>,
) -> vmx_status {
    guard::call("collect_garbage", err, |call| {
        let pool = vmx_pool::of(call, pool)?;
        if !collected.is_null() {
            call.check_output(collected, collected_size, "collected")?;
        }
        let given = pool.collect_garbage()?;
        if collected.is_null() {
            return Ok(());
        }
        let given = vmx_collected {
            freed: given.freed.bytes(),
            objects: given.objects,
        };
        // SAFETY: structures have the size that callers say.
        unsafe { call.output(given, collected, collected_size, "collected") }
    })
}
