//! Hyper-V: a PowerShell module that gives a logical unit, or a VHDX image, to a virtual machine, and
//! takes it away again.
//!
//! It is written by Microsoft's documentation of the modules iSCSI, Storage and Hyper-V; it has not
//! been run on a Hyper-V host.

use super::{Descriptor, Hypervisor, OP, RenderOptions, Request, invalid, quote, split_portal};
use crate::{Access, AttachTarget, ChapReference, Error, ErrorKind, Result};

/// What can be told before the volume is attached.
pub(super) fn check(access: Access, options: &RenderOptions) -> Result<()> {
    let refuse = |reason: &str, help: &str| {
        Err(Error::new(ErrorKind::Unsupported, OP)
            .with("for", Hypervisor::Hyperv)
            .reason(reason)
            .help(help))
    };
    if access == Access::ReadOnly {
        return refuse(
            "Hyper-V has no read-only for a disk of the host that it passes on",
            "attach a clone for writing; or write the volume to a VHDX image (volmux volume export \
             NAME FILE.vhdx --format vhdx), and give the machine a differencing disk on it (New-VHD \
             -Differencing)",
        );
    }
    if options.host_device.is_some() {
        return refuse(
            "a path does not name a disk of a Hyper-V host",
            "render the iSCSI attachment without --host-device: the module finds the disk",
        );
    }
    Ok(())
}

/// A path as Windows has it, of an image that Hyper-V will take for a VHDX by its name.
pub(super) fn check_vhdx(path: &str) -> Result<()> {
    let wrong = |reason: &str| {
        Err(invalid("vhdx", path, reason)
            .help(r"for example D:\disks\web.vhdx or \\store-1\disks\web.vhdx"))
    };
    let drive = |path: &str| {
        let mut bytes = path.bytes();
        bytes.next().is_some_and(|b| b.is_ascii_alphabetic())
            && bytes.next() == Some(b':')
            && bytes.next() == Some(b'\\')
    };
    let share = |path: &str| {
        let rest = path.strip_prefix(r"\\").unwrap_or_default();
        rest.split('\\')
            .take(3)
            .filter(|part| !part.is_empty())
            .count()
            == 3
    };
    if !drive(path) && !share(path) {
        return wrong("this is no whole path of a Windows host");
    }
    if !path.to_ascii_lowercase().ends_with(".vhdx") {
        return wrong("Hyper-V tells a VHDX by the end of its name");
    }
    if path
        .chars()
        .any(|c| c.is_control() || "<>\"|?*[]`/".contains(c))
    {
        return wrong(
            "the path has a character that Windows or PowerShell takes for something else",
        );
    }
    Ok(())
}

/// The module. Its functions take the virtual machine's name, and where a CHAP secret lies on that
/// host.
pub(super) fn module(request: &Request<'_>) -> Result<Descriptor> {
    if let Some(path) = &request.options.vhdx {
        return Ok(image(request, path));
    }
    let reason = match &request.attached.target {
        AttachTarget::Iscsi {
            portal,
            target,
            serial,
            chap,
            mutual_chap,
            ..
        } => {
            let unit = Unit {
                portal,
                target,
                serial,
                chap: chap.as_ref(),
                mutual: mutual_chap.is_some(),
            };
            return connect(request, &unit);
        }
        AttachTarget::Qcow2 { .. } => "Hyper-V does not read qcow2 images",
        AttachTarget::File { .. } => "Hyper-V reads VHDX images, not raw files",
        AttachTarget::BlockDevice { .. } => "a device of a Linux host is none of a Hyper-V host",
        AttachTarget::Nbd { .. } => "Hyper-V has no NBD client",
    };
    let name = &request.attached.volume;
    Err(request.unsupported(
        reason,
        format!(
            "keep the volume in an iSCSI pool; or serve it (volmux export {name} --listen ADDRESS \
             --tls DIR) to WNBD on that host; or write it to an image (volmux volume export {name} \
             {name}.vhdx --format vhdx) and render that (--vhdx)"
        ),
    ))
}

/// A logical unit, and how to log in to its target.
struct Unit<'a> {
    portal: &'a str,
    target: &'a str,
    serial: &'a str,
    chap: Option<&'a ChapReference>,
    mutual: bool,
}

fn connect(request: &Request<'_>, unit: &Unit<'_>) -> Result<Descriptor> {
    let attached = request.attached;
    let (host, port) = split_portal(unit.portal)?;
    if unit.mutual && unit.chap.is_none() {
        return Err(request.unsupported(
            "Windows proves the target (mutual CHAP) only where it proves itself too",
            "configure the pool with both secrets",
        ));
    }
    let text = [
        head(request),
        format!("$portal = {}", quote::powershell(host)),
        format!("$port = {port}"),
        format!("$target = {}", quote::powershell(unit.target)),
        format!("$serial = {}", quote::powershell(unit.serial)),
        format!(
            "$initiator = {}",
            quote::powershell(attached.holder.as_str())
        ),
        UNIT.replace("@PARAMETER@", parameter(unit.chap.is_some()))
            .replace("@AUTHENTICATION@", &authentication(unit)),
        END.into(),
    ];
    Ok(request.descriptor(text.join("\n")))
}

fn image(request: &Request<'_>, path: &str) -> Descriptor {
    let text = [
        head(request),
        format!("$path = {}", quote::powershell(path)),
        IMAGE.into(),
        END.into(),
    ];
    request.descriptor(text.join("\n"))
}

fn head(request: &Request<'_>) -> String {
    let attached = request.attached;
    format!(
        "# Volume {} ({}), as a SCSI disk of a virtual machine.\n{HEAD}",
        attached.volume, attached.id
    )
}

/// What goes on with the parameters of a function.
const fn parameter(chap: bool) -> &'static str {
    match chap {
        true => ",\n        [string] $ChapSecretFile",
        false => "",
    }
}

fn authentication(unit: &Unit<'_>) -> String {
    let Some(chap) = unit.chap else {
        return String::new();
    };
    let user = quote::powershell(&chap.user);
    let (kind, note) = match unit.mutual {
        false => ("ONEWAYCHAP", ""),
        true => ("MUTUALCHAP", MUTUAL),
    };
    format!(
        "\n{note}        $user = {user}\n{SECRET}\n        $login.AuthenticationType = '{kind}'\n        \
         $login.ChapUsername = $user\n        $login.ChapSecret = $secret"
    )
}

const HEAD: &str = r"# For the Hyper-V host, as administrator: Import-Module, then Connect-VolmuxVolume -VMName NAME.
# For more than one volume at a time: Import-Module -Prefix.
Set-StrictMode -Version 2
$ErrorActionPreference = 'Stop'";

const END: &str = "\nExport-ModuleMember -Function Connect-VolmuxVolume, Disconnect-VolmuxVolume";

const MUTUAL: &str = "        # The target's secret is one for the whole host: set it once, with Set-IscsiChapSecret.\n";

const SECRET: &str = r#"        if ($ChapSecretFile) {
            $secret = (Get-Content -Raw -LiteralPath $ChapSecretFile).TrimEnd("`r", "`n")
        } else {
            $asked = Get-Credential -UserName $user -Message 'The CHAP secret'
            $secret = $asked.GetNetworkCredential().Password
        }"#;

const UNIT: &str = r"
# The serial number tells the disk: numbers and letters change.
function Find-Unit {
    Update-HostStorageCache
    Get-Disk | Where-Object { ([string] $_.SerialNumber).Trim() -eq $serial }
}

function Connect-VolmuxVolume {
    [CmdletBinding()]
    param(
        [Parameter(Mandatory = $true)] [string] $VMName@PARAMETER@
    )
    Get-VM -Name $VMName | Out-Null
    Set-Service -Name MSiSCSI -StartupType Automatic
    Start-Service -Name MSiSCSI
    $own = @(Get-InitiatorPort | ForEach-Object { $_.NodeAddress })
    if ($own -notcontains $initiator) {
        throw ('The volume is attached to ' + $initiator + ', and this host is ' + ($own -join ', '))
    }
    $portals = @(Get-IscsiTargetPortal | Where-Object {
        $_.TargetPortalAddress -eq $portal -and $_.TargetPortalPortNumber -eq $port
    })
    if ($portals.Count -eq 0) {
        New-IscsiTargetPortal -TargetPortalAddress $portal -TargetPortalPortNumber $port | Out-Null
    } else {
        $portals | Update-IscsiTargetPortal
    }
    $sessions = @(Get-IscsiSession | Where-Object { $_.TargetNodeAddress -eq $target })
    if ($sessions.Count -eq 0) {
        $login = @{
            NodeAddress            = $target
            TargetPortalAddress    = $portal
            TargetPortalPortNumber = $port
            IsPersistent           = $true
        }@AUTHENTICATION@
        Connect-IscsiTarget @login | Out-Null
    }
    $disks = @()
    for ($second = 0; $second -lt 60; $second++) {
        $disks = @(Find-Unit)
        if ($disks.Count -gt 0) { break }
        Start-Sleep -Seconds 1
    }
    if ($disks.Count -ne 1) {
        throw ('There are ' + $disks.Count + ' disks with the serial number ' + $serial)
    }
    $number = $disks[0].Number
    if (-not $disks[0].IsOffline) { Set-Disk -Number $number -IsOffline $true }
    $has = @(Get-VMHardDiskDrive -VMName $VMName | Where-Object { $_.DiskNumber -eq $number })
    if ($has.Count -eq 0) {
        Add-VMHardDiskDrive -VMName $VMName -ControllerType SCSI -DiskNumber $number
    }
}

function Disconnect-VolmuxVolume {
    [CmdletBinding()]
    param(
        [Parameter(Mandatory = $true)] [string] $VMName
    )
    $disks = @(Find-Unit)
    if ($disks.Count -gt 1) {
        throw ('There are ' + $disks.Count + ' disks with the serial number ' + $serial)
    }
    foreach ($disk in $disks) {
        Get-VMHardDiskDrive -VMName $VMName |
            Where-Object { $_.DiskNumber -eq $disk.Number } |
            Remove-VMHardDiskDrive
    }
    # Another unit of the same target may be in use.
    $sessions = @(Get-IscsiSession | Where-Object { $_.TargetNodeAddress -eq $target })
    foreach ($session in $sessions) {
        $others = @($session | Get-Disk | Where-Object {
            ([string] $_.SerialNumber).Trim() -ne $serial
        })
        if ($others.Count -gt 0) { continue }
        if ($session.IsPersistent) {
            Unregister-IscsiSession -SessionIdentifier $session.SessionIdentifier
        }
        Disconnect-IscsiTarget -SessionIdentifier $session.SessionIdentifier -Confirm:$false
    }
}";

const IMAGE: &str = r"
function Connect-VolmuxVolume {
    [CmdletBinding()]
    param(
        [Parameter(Mandatory = $true)] [string] $VMName
    )
    $image = Get-VHD -Path $path
    if ($image.VhdFormat -ne 'VHDX') {
        throw ($path + ' is a ' + $image.VhdFormat + ' image')
    }
    $has = @(Get-VMHardDiskDrive -VMName $VMName | Where-Object { $_.Path -eq $path })
    if ($has.Count -eq 0) {
        Add-VMHardDiskDrive -VMName $VMName -ControllerType SCSI -Path $path
    }
}

function Disconnect-VolmuxVolume {
    [CmdletBinding()]
    param(
        [Parameter(Mandatory = $true)] [string] $VMName
    )
    # With a checkpoint the machine writes to a differencing disk, and the image alone is old.
    $checkpoints = @(Get-VMSnapshot -VMName $VMName)
    if ($checkpoints.Count -gt 0) {
        throw ($VMName + ' has checkpoints: remove them first, and wait until they are merged')
    }
    Get-VMHardDiskDrive -VMName $VMName |
        Where-Object { $_.Path -eq $path } |
        Remove-VMHardDiskDrive
}";
