//! The command line's shape.

use std::path::PathBuf;

use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::{Args, Parser, Subcommand, ValueEnum, ValueHint};
use clap_complete::Shell;
use volmux::ErrorKind;
use volmux::hypervisor::{DiskBus, Hypervisor, RenderOptions};

use crate::serve::ServeArgs;

/// Volumes, snapshots and clones on any storage, for any hypervisor.
///
/// A pool is one place that holds volumes. It is named by a URL (dir:///srv/volumes) or by its name
/// in the configuration file.
#[derive(Debug, Parser)]
#[command(name = "volmux", version, max_term_width = 100, arg_required_else_help = true, after_long_help = after_help())]
pub struct Cli {
    #[command(flatten)]
    pub global: Global,
    #[command(subcommand)]
    pub command: Command,
}

/// Options that every command takes.
#[derive(Args, Debug)]
pub struct Global {
    /// The pool: a URL such as dir:///srv/volumes, or a name from the configuration file
    #[arg(
        short,
        long,
        global = true,
        env = "VOLMUX_POOL",
        value_name = "NAME-OR-URL"
    )]
    pub pool: Option<String>,
    /// The configuration file [default: ~/.config/volmux/config.toml, then /etc/volmux/config.toml]
    #[arg(long, global = true, env = "VOLMUX_CONFIG", value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub config: Option<PathBuf>,
    /// Print JSON with exact bytes, one document a line; errors too
    #[arg(long, global = true)]
    pub json: bool,
    /// With --json: tell on stderr how far long work is
    #[arg(long, global = true)]
    pub progress: bool,
    /// Tell on stderr what is done (-vv: more)
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    pub verbose: u8,
    #[command(flatten)]
    pub stop: Stop,
    /// Take names that end in .importing too, which are those of unfinished imports
    #[arg(long, global = true)]
    pub any_name: bool,
}

/// What stops the program besides signals, for programs that start it.
#[derive(Args, Clone, Copy, Debug)]
pub struct Stop {
    /// Stop, as on Ctrl-C, when standard input ends: when whoever started this is gone
    #[arg(long, global = true)]
    pub stop_at_eof: bool,
    /// Stop, as on Ctrl-C, after so many seconds
    #[arg(long, global = true, value_name = "SECONDS", value_parser = clap::value_parser!(u32).range(1..))]
    pub time_limit: Option<u32>,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Look at a pool, or put it in order
    #[command(subcommand)]
    Pool(PoolCommand),
    /// Make, change, copy and delete volumes
    #[command(subcommand)]
    Volume(VolumeCommand),
    /// Make a volume reachable for a host or a virtual machine: volume attach, in short
    Attach(Box<AttachArgs>),
    /// End an attachment: volume detach, in short
    Detach(DetachArgs),
    /// Serve volumes to other programs over NBD, until stopped (into a file: volume export)
    Export(Box<ServeArgs>),
    /// Print a shell's completion script
    Completions {
        /// The shell
        shell: Shell,
    },
    /// Print the man page, or write the pages of all commands into a directory
    Man {
        /// An existing directory
        #[arg(value_hint = ValueHint::DirPath)]
        dir: Option<PathBuf>,
    },
}

#[derive(Debug, Subcommand)]
pub enum PoolCommand {
    /// Show what a pool can do and how full it is
    Info,
    /// Find what interrupted work left behind; exit code 1 if something is wrong
    Audit {
        /// Remove leftovers and finish half-done work
        #[arg(long)]
        repair: bool,
        /// With --repair: only show what would be repaired
        #[arg(long)]
        dry_run: bool,
    },
    /// Read everything and verify it; exit code 1 if something is damaged
    Scrub,
    /// Give back what nothing uses any more
    Gc,
}

#[derive(Debug, Subcommand)]
pub enum VolumeCommand {
    /// Make an empty volume
    Create {
        /// The new volume's name
        name: String,
        /// Size: 10GiB, 512MiB, 1.5TiB, 500MB or bytes
        size: String,
        /// Reserve all space now
        #[arg(long)]
        thick: bool,
    },
    /// List the volumes as they are found
    List {
        /// Sort them, which collects them first
        #[arg(long, value_name = "BY")]
        sort: Option<SortKey>,
    },
    /// Show everything that is known of a volume
    Info {
        /// The volume's name
        name: String,
    },
    /// Change a volume's size
    Resize {
        /// The volume's name
        name: String,
        /// The new size: 10GiB, 512MiB, 1.5TiB, 500MB or bytes
        size: String,
        /// Allow a smaller size: what lies past it is lost
        #[arg(long)]
        shrink: bool,
        /// Only show what would happen
        #[arg(long)]
        dry_run: bool,
    },
    /// Give a volume another name
    Rename {
        /// The volume's name
        name: String,
        /// The new name
        to: String,
    },
    /// Delete volumes; their snapshots and clones stay
    Delete {
        /// The volumes' names
        #[arg(required = true, value_name = "NAME")]
        names: Vec<String>,
        /// Only show what would happen
        #[arg(long)]
        dry_run: bool,
    },
    /// Make a read-only image of a volume as it is now
    Snapshot {
        /// The volume's name
        source: String,
        /// The snapshot's name
        name: String,
    },
    /// Make snapshots of several volumes of one moment, between a freeze and a thaw
    SnapshotGroup(GroupArgs),
    /// Make a writable volume that shares the blocks of a volume or snapshot
    Clone {
        /// The volume or snapshot that it begins with
        source: String,
        /// The clone's name
        name: String,
    },
    /// Put a volume back to one of its snapshots; what was written since is lost
    Revert {
        /// The volume's name
        name: String,
        /// One of its snapshots
        snapshot: String,
        /// Only show what would happen
        #[arg(long)]
        dry_run: bool,
    },
    /// Make a volume independent of the data files of others; its content stays the same
    Flatten {
        /// The volume's name
        name: String,
    },
    /// Take a volume away from whoever has it open for writing, and close it
    TakeOver {
        /// The volume's name
        name: String,
    },
    /// Make a full, independent duplicate
    Copy {
        /// The volume or snapshot that is copied
        source: String,
        /// The duplicate's name
        name: String,
        /// Into another pool
        #[arg(long, value_name = "NAME-OR-URL")]
        to: Option<String>,
    },
    /// Print the ranges that hold data, or that changed since a snapshot
    Extents {
        /// The volume's name
        name: String,
        /// The ranges whose content differs from that of this snapshot
        #[arg(long, value_name = "SNAPSHOT")]
        changed_since: Option<String>,
        /// Only from this byte on
        #[arg(long)]
        offset: Option<String>,
        /// Only so many bytes
        #[arg(long)]
        length: Option<String>,
    },
    /// Make a volume from an image file
    Import(ImportArgs),
    /// Write a volume to an image file (to serve it over NBD: volmux export)
    Export(ExportArgs),
    /// Make a volume reachable for a host or a virtual machine, and print its path or URL, or what
    /// the hypervisor must be given
    Attach(Box<AttachArgs>),
    /// End an attachment; refused while somebody still uses it
    Detach(DetachArgs),
    /// Take over something that exists in the pool's place and is not yet a volume
    Adopt {
        /// In the pool's own terms: a path below a directory pool's root, a logical volume's name
        what: String,
        /// The new volume's name
        name: String,
    },
}

#[derive(Args, Debug)]
pub struct GroupArgs {
    /// A volume's name and that of its snapshot
    #[arg(required = true, value_name = "VOLUME=SNAPSHOT")]
    pub members: Vec<String>,
    /// A command of the shell that makes what writes them stand still: virsh domfsfreeze web
    #[arg(long, value_name = "COMMAND")]
    pub freeze: String,
    /// A command of the shell that lets it go on. It is run whatever comes of the rest, and again if
    /// it fails
    #[arg(long, value_name = "COMMAND")]
    pub thaw: String,
    /// For how long writing may stand still. Then it is thawed, and no snapshot is left
    #[arg(long, value_name = "SECONDS", default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..))]
    pub deadline: u32,
}

#[derive(Args, Debug)]
pub struct AttachArgs {
    /// The volume's name
    pub name: String,
    /// Who it is for: the name of a host or a virtual machine, to be given to detach; in an iSCSI
    /// pool the name of its initiator (iqn.…) [default: this host's name]
    pub holder: Option<String>,
    /// For reading only
    #[arg(short, long)]
    pub read_only: bool,
    /// Let others write too who ask for the same
    #[arg(long)]
    pub shared: bool,
    /// Serve the volume over NBD on this Unix socket, from this host and in the background, until it
    /// is detached with the same --gateway: where the pool attaches nothing, or what it attaches is
    /// no use to the hypervisor
    #[arg(long, value_name = "SOCKET", value_hint = ValueHint::FilePath)]
    pub gateway: Option<PathBuf>,
    #[command(flatten)]
    pub render: RenderArgs,
}

#[derive(Args, Debug)]
pub struct DetachArgs {
    /// The volume's name
    pub name: String,
    /// Who has it, as the error of a volume in use names it (attached_to) [default: this host's
    /// name]
    pub holder: Option<String>,
    /// The socket of the gateway that attach started
    #[arg(long, value_name = "SOCKET", value_hint = ValueHint::FilePath)]
    pub gateway: Option<PathBuf>,
}

/// What is printed for a hypervisor.
#[derive(Args, Debug)]
#[command(next_help_heading = "For a hypervisor")]
pub struct RenderArgs {
    /// Print what it must be given: QEMU's arguments, QMP commands, libvirt's XML, xl's disk
    /// string, the answer of a SMAPIv3 plugin, or a PowerShell module. Nothing stays attached if
    /// that can't be said
    #[arg(long = "for", value_name = "HYPERVISOR", value_parser = hypervisor())]
    pub hypervisor: Option<Hypervisor>,
    /// The disk's name there: vda, sdb, xvdc
    #[arg(long, value_name = "NAME", requires = "hypervisor")]
    device: Option<String>,
    /// QEMU and libvirt: a SCSI disk instead of virtio-blk
    #[arg(long, requires = "hypervisor")]
    scsi: bool,
    /// QEMU: the name of the block node and the device
    #[arg(long, value_name = "NAME", requires = "hypervisor")]
    node: Option<String>,
    /// QEMU: the bus that the device is put on
    #[arg(long, value_name = "ID", requires = "hypervisor")]
    bus_id: Option<String>,
    /// QEMU and libvirt: go through the host's page cache, where a file system needs it
    #[arg(long, requires = "hypervisor")]
    page_cache: bool,
    /// libvirt: the usage of the secret that it keeps for CHAP [default: the CHAP user]
    #[arg(long, value_name = "USAGE", requires = "hypervisor")]
    secret_usage: Option<String>,
    /// A block device on which this host already has the volume (logged in, connected)
    #[arg(long, value_name = "PATH", requires = "hypervisor", value_hint = ValueHint::FilePath)]
    host_device: Option<PathBuf>,
    /// Hyper-V: a VHDX image to which the volume was written (volume export), as that host names it
    #[arg(long, value_name = "PATH", requires = "hypervisor")]
    vhdx: Option<String>,
}

impl RenderArgs {
    /// As the library takes them.
    pub fn options(&self, shared: bool) -> RenderOptions {
        RenderOptions {
            node: self.node.clone(),
            device: self.device.clone(),
            bus: if self.scsi {
                DiskBus::Scsi
            } else {
                DiskBus::Virtio
            },
            bus_id: self.bus_id.clone(),
            shared,
            page_cache: self.page_cache,
            secret_usage: self.secret_usage.clone(),
            host_device: self.host_device.clone(),
            vhdx: self.vhdx.clone(),
            ..RenderOptions::default()
        }
    }
}

/// The names that the library knows, also for completions.
fn hypervisor() -> impl TypedValueParser<Value = Hypervisor> {
    PossibleValuesParser::new(Hypervisor::ALL.map(Hypervisor::name))
        .try_map(|name| name.parse::<Hypervisor>())
}

#[derive(Args, Debug)]
pub struct ImportArgs {
    /// The image: a file or a block device
    #[arg(value_hint = ValueHint::FilePath)]
    pub file: PathBuf,
    /// The new volume's name
    pub name: String,
    /// The image's format; it is never guessed
    #[arg(short, long)]
    pub format: Format,
    /// The new volume's size, at least that of the image
    #[arg(long)]
    pub size: Option<String>,
    /// Reserve all space now
    #[arg(long)]
    pub thick: bool,
    /// Compare both sides afterwards and print the SHA-256
    #[arg(long)]
    pub verify: bool,
}

#[derive(Args, Debug)]
pub struct ExportArgs {
    /// The volume's name
    pub name: String,
    /// The image file; it appears when it is whole
    #[arg(value_hint = ValueHint::FilePath)]
    pub file: PathBuf,
    /// The image's format
    #[arg(short, long)]
    pub format: Format,
    /// Replace an existing file, follow a symlink, write to a block device
    #[arg(long)]
    pub force: bool,
    /// Compare both sides afterwards and print the SHA-256
    #[arg(long)]
    pub verify: bool,
}

/// An image format, by qemu-img's name for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// The plain content
    Raw,
    /// QEMU
    Qcow2,
    /// Hyper-V
    Vhdx,
    /// Virtual PC, Xen and Azure (VHD)
    #[value(alias = "vhd")]
    Vpc,
}

impl Format {
    /// qemu-img's name.
    pub const fn name(self) -> &'static str {
        match self {
            Format::Raw => "raw",
            Format::Qcow2 => "qcow2",
            Format::Vhdx => "vhdx",
            Format::Vpc => "vpc",
        }
    }
}

/// What a list is sorted by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum SortKey {
    /// By name
    Name,
    /// By virtual size
    Size,
    /// By age, oldest first
    Created,
}

/// The exit code of an error.
pub fn exit_code(kind: ErrorKind) -> u8 {
    u8::try_from(10 + kind.code()).unwrap_or(10 + ErrorKind::Internal.code() as u8)
}

/// The exit code of an audit that found something which is not repaired.
pub const EXIT_UNCLEAN: u8 = 1;

/// The table of exit codes and the environment, for `--help` and the man page.
fn after_help() -> String {
    let mut text = String::from(
        "Exit codes:\n   0  done\n   1  an audit found something that is wrong and not repaired\n   \
         2  the command line is wrong\n",
    );
    for kind in ErrorKind::ALL {
        text.push_str(&format!(
            "  {:2}  {} ({})\n",
            exit_code(kind),
            kind,
            kind.name()
        ));
    }
    text.push_str(
        "\nEnvironment:\n  VOLMUX_POOL      the pool, where --pool is not given\n  \
         VOLMUX_CONFIG    the configuration file, where --config is not given\n  \
         VOLMUX_QEMU_IMG  the qemu-img program, as an absolute path\n\n\
         Ctrl-C stops long work and cleans up; a second one ends at once.",
    );
    text
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn help_lists_every_exit_code() {
        let help = Cli::command().render_long_help().to_string();
        for kind in ErrorKind::ALL {
            let line = format!("{}  {kind} ({})", exit_code(kind), kind.name());
            assert!(help.contains(&line), "{line}");
        }
    }
}
