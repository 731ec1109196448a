/*
 * volmux: one storage layer for every hypervisor. The C interface.
 *
 * Conventions, threads, callbacks and forks: ffi/README.md (installed as doc/volmux/README.md).
 * Made by cbindgen from ffi/src: do not edit.
 */

#ifndef VOLMUX_H
#define VOLMUX_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/**
 * Stands for a number that is not known or does not apply, wherever one is given as `uint64_t`.
 */
#define VMX_NONE UINT64_MAX

/**
 * What the library was built as: rises with every change that a compiled program would notice.
 * Compare it with what `vmx_abi_version` returns.
 */
#define VMX_ABI_VERSION 0

/**
 * What came of a call. The numbers are never given another meaning, but new ones may come: treat
 * one that you do not know as `VMX_INTERNAL`.
 */
enum vmx_status
#if defined(__cplusplus) || __STDC_VERSION__ >= 202311L
  : int32_t
#endif // defined(__cplusplus) || __STDC_VERSION__ >= 202311L
 {
    /**
     * It was done.
     */
    VMX_OK = 0,
    /**
     * The named object does not exist. Check the name; create it first.
     */
    VMX_NOT_FOUND = 1,
    /**
     * The name is taken by an object made with other arguments. Choose another name.
     */
    VMX_ALREADY_EXISTS = 2,
    /**
     * This pool cannot do that, as its capabilities say. Use another pool or another way.
     */
    VMX_UNSUPPORTED = 3,
    /**
     * An argument is wrong. Correct the call; repeating it cannot help.
     */
    VMX_INVALID_INPUT = 4,
    /**
     * The pool's URL, configuration or stored configuration is wrong. Correct it.
     */
    VMX_INVALID_CONFIG = 5,
    /**
     * There is no room, or the pool's policy refuses. Free or add space.
     */
    VMX_NO_SPACE = 6,
    /**
     * Somebody else uses the object. Try again once they are done.
     */
    VMX_BUSY = 7,
    /**
     * Another writer took over; this handle is dead. Do not retry: find out who took over.
     */
    VMX_FENCED = 8,
    /**
     * The operating system or the store does not allow it. Grant the right, or change the user.
     */
    VMX_PERMISSION_DENIED = 9,
    /**
     * Credentials are missing or wrong. Correct them.
     */
    VMX_UNAUTHENTICATED = 10,
    /**
     * The store cannot be reached or answered with a passing fault. Try again later.
     */
    VMX_UNAVAILABLE = 11,
    /**
     * The operation was stopped before it finished: its deadline passed, or the caller cancelled
     * it. Calling again converges.
     */
    VMX_TIMED_OUT = 12,
    /**
     * Stored data or metadata is damaged. Stop writing, run an audit, restore from a backup.
     */
    VMX_CORRUPT = 13,
    /**
     * A fault in volmux itself. Report it.
     */
    VMX_INTERNAL = 14,
};
#ifndef __cplusplus
#if __STDC_VERSION__ >= 202311L
typedef enum vmx_status vmx_status;
#else
typedef int32_t vmx_status;
#endif // __STDC_VERSION__ >= 202311L
#endif // __cplusplus

/**
 * For reading only, or for writing too.
 */
enum vmx_access
#if defined(__cplusplus) || __STDC_VERSION__ >= 202311L
  : uint32_t
#endif // defined(__cplusplus) || __STDC_VERSION__ >= 202311L
 {
    /**
     * Reading only.
     */
    VMX_READ_ONLY = 0,
    /**
     * Reading and writing.
     */
    VMX_READ_WRITE = 1,
};
#ifndef __cplusplus
#if __STDC_VERSION__ >= 202311L
typedef enum vmx_access vmx_access;
#else
typedef uint32_t vmx_access;
#endif // __STDC_VERSION__ >= 202311L
#endif // __cplusplus

/**
 * What a host finds where a volume is attached.
 */
enum vmx_target
#if defined(__cplusplus) || __STDC_VERSION__ >= 202311L
  : uint32_t
#endif // defined(__cplusplus) || __STDC_VERSION__ >= 202311L
 {
    /**
     * Something that this version of the library has no word for.
     */
    VMX_TARGET_OTHER = 0,
    /**
     * A file with the raw image.
     */
    VMX_TARGET_FILE = 1,
    /**
     * A block device.
     */
    VMX_TARGET_BLOCK_DEVICE = 2,
    /**
     * A file with a qcow2 image; the files below it lie beside it, and its header names them. Open
     * it with format qcow2 given explicitly, never probed.
     */
    VMX_TARGET_QCOW2 = 3,
    /**
     * A logical unit of an iSCSI target, which the holder's initiator logs in to.
     */
    VMX_TARGET_ISCSI = 4,
    /**
     * An export of an NBD server. Its content is raw.
     */
    VMX_TARGET_NBD = 5,
};
#ifndef __cplusplus
#if __STDC_VERSION__ >= 202311L
typedef enum vmx_target vmx_target;
#else
typedef uint32_t vmx_target;
#endif // __STDC_VERSION__ >= 202311L
#endif // __cplusplus

/**
 * What sort of thing an audit found.
 */
enum vmx_finding
#if defined(__cplusplus) || __STDC_VERSION__ >= 202311L
  : uint32_t
#endif // defined(__cplusplus) || __STDC_VERSION__ >= 202311L
 {
    /**
     * Something that this version of the library has no word for.
     */
    VMX_FINDING_OTHER = 0,
    /**
     * Left by interrupted work; belongs to no volume. Repair removes it.
     */
    VMX_FINDING_LEFTOVER = 1,
    /**
     * Half-done work of which one side is already in effect. Repair finishes it.
     */
    VMX_FINDING_UNFINISHED = 2,
    /**
     * A volume that cannot be used. Repair leaves it alone, for a person to look at.
     */
    VMX_FINDING_DAMAGED = 3,
    /**
     * Something in the pool's place that volmux did not make. Repair leaves it alone.
     */
    VMX_FINDING_FOREIGN = 4,
};
#ifndef __cplusplus
#if __STDC_VERSION__ >= 202311L
typedef enum vmx_finding vmx_finding;
#else
typedef uint32_t vmx_finding;
#endif // __STDC_VERSION__ >= 202311L
#endif // __cplusplus

/**
 * How much extents can be relied on. Never is one left out.
 */
enum vmx_grade
#if defined(__cplusplus) || __STDC_VERSION__ >= 202311L
  : uint32_t
#endif // defined(__cplusplus) || __STDC_VERSION__ >= 202311L
 {
    /**
     * Exactly the blocks (of the granularity) that are asked for.
     */
    VMX_GRADE_EXACT = 0,
    /**
     * All of them, and possibly others.
     */
    VMX_GRADE_SUPERSET = 1,
    /**
     * The pool cannot tell what changed: these are all allocated extents of both volumes.
     */
    VMX_GRADE_ALLOCATED_ONLY = 2,
};
#ifndef __cplusplus
#if __STDC_VERSION__ >= 202311L
typedef enum vmx_grade vmx_grade;
#else
typedef uint32_t vmx_grade;
#endif // __STDC_VERSION__ >= 202311L
#endif // __cplusplus

/**
 * How a pool does something.
 */
enum vmx_support
#if defined(__cplusplus) || __STDC_VERSION__ >= 202311L
  : uint32_t
#endif // defined(__cplusplus) || __STDC_VERSION__ >= 202311L
 {
    /**
     * Not at all: the call returns `VMX_UNSUPPORTED` and changes nothing.
     */
    VMX_SUPPORT_NONE = 0,
    /**
     * With the same result, by moving or comparing data: cost grows with it.
     */
    VMX_SUPPORT_EMULATED = 1,
    /**
     * By the store itself.
     */
    VMX_SUPPORT_NATIVE = 2,
};
#ifndef __cplusplus
#if __STDC_VERSION__ >= 202311L
typedef enum vmx_support vmx_support;
#else
typedef uint32_t vmx_support;
#endif // __STDC_VERSION__ >= 202311L
#endif // __cplusplus

/**
 * How near to its limits a pool is.
 */
enum vmx_pressure
#if defined(__cplusplus) || __STDC_VERSION__ >= 202311L
  : uint32_t
#endif // defined(__cplusplus) || __STDC_VERSION__ >= 202311L
 {
    /**
     * Below every mark.
     */
    VMX_PRESSURE_NORMAL = 0,
    /**
     * At or past the warn mark.
     */
    VMX_PRESSURE_WARN = 1,
    /**
     * At or past the refuse mark: nothing new is made.
     */
    VMX_PRESSURE_REFUSE = 2,
};
#ifndef __cplusplus
#if __STDC_VERSION__ >= 202311L
typedef enum vmx_pressure vmx_pressure;
#else
typedef uint32_t vmx_pressure;
#endif // __STDC_VERSION__ >= 202311L
#endif // __cplusplus

/**
 * How space is taken.
 */
enum vmx_provisioning
#if defined(__cplusplus) || __STDC_VERSION__ >= 202311L
  : uint32_t
#endif // defined(__cplusplus) || __STDC_VERSION__ >= 202311L
 {
    /**
     * When it is first written.
     */
    VMX_THIN = 0,
    /**
     * All at creation: a later write cannot fail for lack of it.
     */
    VMX_THICK = 1,
};
#ifndef __cplusplus
#if __STDC_VERSION__ >= 202311L
typedef enum vmx_provisioning vmx_provisioning;
#else
typedef uint32_t vmx_provisioning;
#endif // __STDC_VERSION__ >= 202311L
#endif // __cplusplus

/**
 * How a volume came from another one.
 */
enum vmx_origin
#if defined(__cplusplus) || __STDC_VERSION__ >= 202311L
  : uint32_t
#endif // defined(__cplusplus) || __STDC_VERSION__ >= 202311L
 {
    /**
     * It did not: it was created or adopted.
     */
    VMX_ORIGIN_NONE = 0,
    /**
     * A read-only image of its parent at one moment.
     */
    VMX_ORIGIN_SNAPSHOT = 1,
    /**
     * A writable volume that started with its parent's content and shares its blocks.
     */
    VMX_ORIGIN_CLONE = 2,
    /**
     * A full, independent duplicate.
     */
    VMX_ORIGIN_COPY = 3,
};
#ifndef __cplusplus
#if __STDC_VERSION__ >= 202311L
typedef enum vmx_origin vmx_origin;
#else
typedef uint32_t vmx_origin;
#endif // __STDC_VERSION__ >= 202311L
#endif // __cplusplus

/**
 * Whether other writers are let in.
 */
enum vmx_sharing
#if defined(__cplusplus) || __STDC_VERSION__ >= 202311L
  : uint32_t
#endif // defined(__cplusplus) || __STDC_VERSION__ >= 202311L
 {
    /**
     * One writer.
     */
    VMX_EXCLUSIVE = 0,
    /**
     * Several writers, who all ask for it and arrange their writes among themselves.
     */
    VMX_SHARED = 1,
};
#ifndef __cplusplus
#if __STDC_VERSION__ >= 202311L
typedef enum vmx_sharing vmx_sharing;
#else
typedef uint32_t vmx_sharing;
#endif // __STDC_VERSION__ >= 202311L
#endif // __cplusplus

/**
 * Who a volume is rendered for.
 */
enum vmx_hypervisor
#if defined(__cplusplus) || __STDC_VERSION__ >= 202311L
  : uint32_t
#endif // defined(__cplusplus) || __STDC_VERSION__ >= 202311L
 {
    /**
     * Arguments of QEMU's command line (QEMU 7.2 and newer).
     */
    VMX_QEMU = 0,
    /**
     * Commands of QEMU's machine protocol, one JSON document a line (QEMU 7.2 and newer).
     */
    VMX_QMP = 1,
    /**
     * A `<disk>` of libvirt's domain XML (libvirt 9.0 and newer, QEMU driver).
     */
    VMX_LIBVIRT = 2,
    /**
     * A disk string of Xen's xl (Xen 4.17 and newer).
     */
    VMX_XL = 3,
    /**
     * What `Datapath.attach` of a SMAPIv3 plugin answers (XenServer, XCP-ng).
     */
    VMX_SMAPIV3 = 4,
    /**
     * A PowerShell script for a Hyper-V host.
     */
    VMX_HYPERV = 5,
};
#ifndef __cplusplus
#if __STDC_VERSION__ >= 202311L
typedef enum vmx_hypervisor vmx_hypervisor;
#else
typedef uint32_t vmx_hypervisor;
#endif // __STDC_VERSION__ >= 202311L
#endif // __cplusplus

/**
 * The controller on which the guest finds the disk.
 */
enum vmx_disk_bus
#if defined(__cplusplus) || __STDC_VERSION__ >= 202311L
  : uint32_t
#endif // defined(__cplusplus) || __STDC_VERSION__ >= 202311L
 {
    /**
     * virtio-blk. Guests see the first 20 characters of the serial number.
     */
    VMX_BUS_VIRTIO = 0,
    /**
     * A disk on a SCSI controller, which the virtual machine must have (virtio-scsi).
     */
    VMX_BUS_SCSI = 1,
};
#ifndef __cplusplus
#if __STDC_VERSION__ >= 202311L
typedef enum vmx_disk_bus vmx_disk_bus;
#else
typedef uint32_t vmx_disk_bus;
#endif // __STDC_VERSION__ >= 202311L
#endif // __cplusplus

/**
 * Where a host finds a volume that is attached. It holds nothing of the pool: freeing it does not
 * detach. Any number of threads may read it at once.
 *
 * All accessors take NULL, and give NULL, `VMX_READ_ONLY`, `VMX_TARGET_OTHER` or `VMX_NONE` for it.
 * Paths are as the system has them, which need not be UTF-8.
 */
typedef struct vmx_attachment vmx_attachment;

/**
 * Watches and stops the operations that it is given to; one may be given to several. Any number
 * of threads may use it at once.
 */
typedef struct vmx_control vmx_control;

/**
 * What a hypervisor is given. No secret is in it, only where the secret lies. Any number of
 * threads may read it at once. All accessors take NULL, and give NULL or 0 for it.
 */
typedef struct vmx_descriptor vmx_descriptor;

/**
 * An open volume. Any number of threads may use it at once, and many requests may be under way;
 * requests that overlap and are under way together have no order.
 *
 * A request that was answered has taken effect; it is durable once a later flush was answered.
 */
typedef struct vmx_device vmx_device;

/**
 * Why a call failed: what sort of failure, in which operation, about which objects, and what
 * caused it. Belongs to who got it; any number of threads may read it at once.
 *
 * All accessors take NULL, as the error of a call that did not fail.
 */
typedef struct vmx_error vmx_error;

/**
 * A running export. Any number of threads may use it at once.
 */
typedef struct vmx_export vmx_export;

/**
 * Extents in ascending order, never empty, never overlapping. They begin and end on multiples of
 * the granularity, except where they are cut by the range asked for or by the volume's end.
 * Several threads may ask at once; each gets another extent.
 */
typedef struct vmx_extents vmx_extents;

/**
 * An open pool. Any number of threads may use it at once. Its volumes' devices, listings and
 * exports may outlive it.
 */
typedef struct vmx_pool vmx_pool;

/**
 * What an audit or a scrub found. It holds nothing of the pool. Any number of threads may read it
 * at once.
 *
 * All accessors take NULL, as a report without findings.
 */
typedef struct vmx_report vmx_report;

/**
 * What a pool said of one volume at one moment. It holds nothing of the pool: it stays readable
 * when the pool is freed, and freeing it does nothing to the volume. Any number of threads may
 * read it at once.
 *
 * All accessors take NULL, and give NULL, 0, false or `VMX_NONE` for it.
 */
typedef struct vmx_volume vmx_volume;

/**
 * The volumes of a pool, each looked up when it is asked for. Several threads may ask at once;
 * each gets another volume.
 */
typedef struct vmx_volumes vmx_volumes;

/**
 * How to attach.
 */
typedef struct vmx_attach_options {
    /**
     * Who the volume is for: the name of a host or a virtual machine, 1 to 255 printable ASCII
     * characters without spaces.
     */
    const char *holder;
    /**
     * A `vmx_access`.
     */
    uint32_t access;
    /**
     * A `vmx_sharing`.
     */
    uint32_t sharing;
} vmx_attach_options;

/**
 * How an audit goes. All zeros: it only looks.
 */
typedef struct vmx_audit_options {
    /**
     * 1: remove leftovers and finish half-done work.
     */
    uint32_t repair;
} vmx_audit_options;

/**
 * What a collection of garbage gave back.
 */
typedef struct vmx_collected {
    /**
     * Bytes that can be used again, as the store counts them.
     */
    uint64_t freed;
    /**
     * Files or objects that were removed.
     */
    uint64_t objects;
} vmx_collected;

/**
 * Told of the end of a request: its status, and the error (which is the callback's to free) or
 * NULL. Called exactly once for each request that was started with `VMX_OK`, and never for another,
 * from a thread of the library, possibly before the call that started it has returned.
 *
 * It must be quick and must return: no exception, no longjmp. It may start further requests and
 * free any handle. Calls that wait are refused there with `VMX_INVALID_INPUT`.
 */
typedef void (*vmx_completion)(void *data,
                               vmx_status status,
                               struct vmx_error *error);

/**
 * How zeros are written. All zeros: the space stays taken, and zeros are written out if need be.
 */
typedef struct vmx_zero_options {
    /**
     * 1: space may be given back.
     */
    uint32_t may_discard;
    /**
     * 1: fail with `VMX_UNSUPPORTED`, with nothing changed, where the store would have to write
     * zeros out.
     */
    uint32_t fast_only;
} vmx_zero_options;

/**
 * Told how far a long operation is, in bytes of data to move (holes don't count). Called from the
 * thread that works, which may be the caller's or the library's, never by two at once for one
 * control, and not any more once the operation has returned. It must be quick, must not make calls
 * that wait, and must return: no exception, no longjmp. It may call `vmx_cancel`.
 */
typedef void (*vmx_progress)(void *data,
                             uint64_t done,
                             uint64_t total);

/**
 * How to open a volume. All zeros: for reading only, together with a writer.
 */
typedef struct vmx_open_options {
    /**
     * A `vmx_access`.
     */
    uint32_t access;
    /**
     * A `vmx_sharing`.
     */
    uint32_t sharing;
    /**
     * 1: take the volume away from a writer that holds it, whose next request fails with
     * `VMX_FENCED`. Needs the capability `fencing`.
     */
    uint32_t take_over;
} vmx_open_options;

/**
 * One volume that is served. Unlike other structures this one, as an element of an array, never
 * grows.
 */
typedef struct vmx_export_volume {
    /**
     * Its name, which is the export's too.
     */
    const char *name;
    /**
     * A `vmx_access`. A snapshot can only be read.
     */
    uint32_t access;
    /**
     * A `vmx_sharing`. `VMX_EXCLUSIVE`: a volume that is written has one client at a time, with as
     * many connections as it wants.
     */
    uint32_t sharing;
} vmx_export_volume;

/**
 * What is served, where, and within which limits. All zeros is a beginning: what is 0 or NULL has
 * its default.
 *
 * NBD has no access control: who can open the Unix socket, or reach the TCP address, can use the
 * volumes. With TLS and `tls_verify_clients` only who has a certificate can.
 */
typedef struct vmx_export_options {
    /**
     * The volumes, each open from the start to the end. If it is only one, it is the default
     * export too.
     */
    const struct vmx_export_volume *volumes;
    /**
     * How many they are.
     */
    size_t volume_count;
    /**
     * 1, with no volumes given: every volume of the pool, those made later too. Each is open while
     * it has a client.
     */
    uint32_t every_volume;
    /**
     * With `every_volume`: a `vmx_access`. Snapshots are always read-only.
     */
    uint32_t access;
    /**
     * With `every_volume`: a `vmx_sharing`.
     */
    uint32_t sharing;
    /**
     * 1: let in only clients with a certificate of the authority in `ca-cert.pem`.
     */
    uint32_t tls_verify_clients;
    /**
     * Where to listen: `unix:/absolute/path` or `tcp:IP:PORT`; port 0 takes a free one. With
     * `listen_fds` there is at least one place.
     */
    const char *const *listen;
    /**
     * How many they are.
     */
    size_t listen_count;
    /**
     * Unix or TCP sockets that listen already, as a service manager hands them over. They are
     * duplicated: the caller may close its own.
     */
    const int *listen_fds;
    /**
     * How many they are.
     */
    size_t listen_fd_count;
    /**
     * NULL, or demand TLS with `server-cert.pem`, `server-key.pem` and `ca-cert.pem` from this
     * directory.
     */
    const char *tls_directory;
    /**
     * NULL, or where `/metrics` (Prometheus) and `/status` (JSON) are answered over HTTP, as in
     * `listen`. It has no access control of its own.
     */
    const char *statistics;
    /**
     * Connections at a time, 1 to 4096 (256).
     */
    uint64_t connections;
    /**
     * How long a client may take from connecting to choosing its export, in milliseconds (10000).
     */
    uint64_t handshake_milliseconds;
    /**
     * How long the pool may take for a request before the client is told that it failed, in
     * milliseconds (60000).
     */
    uint64_t request_milliseconds;
    /**
     * With `every_volume`: how long a volume stays open for a client that vanished and may come
     * back, in milliseconds (60000).
     */
    uint64_t release_milliseconds;
    /**
     * The longest option of a handshake, in bytes, 4096 to 65536 (8192).
     */
    uint64_t option_length;
    /**
     * The longest read or write, in bytes, 1 MiB to 64 MiB (32 MiB).
     */
    uint64_t request_length;
    /**
     * Requests of one connection that are worked on at a time (256).
     */
    uint64_t in_flight_requests;
    /**
     * Bytes of the requests that one connection has under way (64 MiB).
     */
    uint64_t in_flight_per_connection;
    /**
     * Bytes of the requests that all connections have under way (512 MiB).
     */
    uint64_t in_flight_total;
} vmx_export_options;

/**
 * A question for extents. All zeros asks for the allocated extents of the whole volume.
 */
typedef struct vmx_extent_query {
    /**
     * NULL for the ranges that hold data: everything outside reads as zeros. Or the name of a
     * volume, usually an earlier snapshot, for the ranges whose content differs from its.
     */
    const char *changed_since;
    /**
     * First byte that is asked for.
     */
    uint64_t offset;
    /**
     * Number of bytes that are asked for; 0, with offset 0, for the whole volume.
     */
    uint64_t length;
} vmx_extent_query;

/**
 * A volume that belongs to a group, and its snapshot's name. Unlike other structures this one, as
 * an element of an array, never grows.
 */
typedef struct vmx_group_member {
    /**
     * Where it is. A machine's disks may be in several pools.
     */
    const struct vmx_pool *pool;
    /**
     * The volume.
     */
    const char *volume;
    /**
     * The snapshot to be made, in the same pool.
     */
    const char *snapshot;
} vmx_group_member;

/**
 * Makes what writes the volumes stand still, or lets it go on: a guest's file systems by its agent, a
 * data base, the program itself. It returns 0 if it has done so.
 *
 * Called from a thread of its own, in which calls that wait may be made; not any more once the
 * operation has returned. It must return: no exception, no longjmp, no pthread_exit.
 */
typedef int (*vmx_hold)(void *data);

/**
 * What to render besides the attachment. All zeros is right for a disk that has one writer: what
 * is NULL has its default.
 */
typedef struct vmx_render_options {
    /**
     * QEMU's name for the block node and the device: 1 to 29 characters of
     * `[A-Za-z][A-Za-z0-9-._]*` (made of the volume's name and id).
     */
    const char *node;
    /**
     * The disk's name in libvirt's XML and xl's string (`vda`, `sda` on SCSI, `xvda` for Xen).
     */
    const char *device;
    /**
     * QEMU's id of the bus that the device is put on, such as a PCIe root port (QEMU chooses).
     */
    const char *bus_id;
    /**
     * The usage by which libvirt knows the CHAP secret (the CHAP user's name).
     */
    const char *secret_usage;
    /**
     * The directory of QEMU's TLS credentials, for NBD with TLS (`/etc/pki/qemu`).
     */
    const char *tls_credentials;
    /**
     * A block device on which the host already has the volume's content, because the caller
     * connected it. It is what is rendered then. Absolute path.
     */
    const char *host_device;
    /**
     * For Hyper-V: a VHDX image to which the caller wrote the volume's content, as a Windows host
     * names it. It is what is rendered then.
     */
    const char *vhdx;
    /**
     * A `vmx_disk_bus`.
     */
    uint32_t bus;
    /**
     * 1: the volume is attached with `VMX_SHARED`, so other writers must be let in.
     */
    uint32_t shared;
    /**
     * 1: go through the host's page cache. Only for file systems without `O_DIRECT`.
     */
    uint32_t page_cache;
    /**
     * 0.
     */
    uint32_t reserved;
} vmx_render_options;

/**
 * How to create a volume.
 */
typedef struct vmx_create_options {
    /**
     * What the guest will see, in bytes. A pool may round up, and returns what it made.
     */
    uint64_t size;
    /**
     * A `vmx_provisioning`.
     */
    uint32_t provisioning;
    /**
     * Must be 0.
     */
    uint32_t reserved;
} vmx_create_options;

/**
 * How to resize a volume.
 */
typedef struct vmx_resize_options {
    /**
     * The new virtual size, in bytes. A pool may round up.
     */
    uint64_t size;
    /**
     * 1: allow a smaller size, which throws away what lies past it.
     */
    uint32_t allow_shrink;
    /**
     * Must be 0.
     */
    uint32_t reserved;
} vmx_resize_options;

/**
 * What a pool can do. Everything else works on every pool.
 */
typedef struct vmx_capabilities {
    /**
     * Read-only snapshots.
     */
    vmx_support snapshot;
    /**
     * Linked, writable clones.
     */
    vmx_support clone;
    /**
     * Putting a volume back to one of its snapshots.
     */
    vmx_support revert;
    /**
     * Space taken on write.
     */
    vmx_support thin;
    /**
     * Space reserved at creation.
     */
    vmx_support thick;
    /**
     * Making a volume smaller.
     */
    vmx_support shrink;
    /**
     * Giving back the space of discarded ranges.
     */
    vmx_support discard;
    /**
     * Extents that changed since a snapshot (their grade says how exactly).
     */
    vmx_support changed_extents;
    /**
     * Handing a volume to a host by itself, without an export.
     */
    vmx_support attach;
    /**
     * Taking over something that already exists.
     */
    vmx_support adopt;
    /**
     * Several writers of one volume at once, when asked for.
     */
    vmx_support shared_writers;
    /**
     * Taking a volume away from a live writer.
     */
    vmx_support fencing;
} vmx_capabilities;

/**
 * When a pool warns of filling up, and when it refuses.
 */
typedef struct vmx_policy {
    /**
     * Largest sum of virtual sizes, as a multiple of the pool's total; 0 for no limit.
     */
    double overcommit_limit;
    /**
     * From this occupancy on, in percent, of data or metadata, the pressure is a warning.
     */
    double warn_percent;
    /**
     * What starts at or would pass this occupancy, in percent, is refused. 100: nothing is.
     */
    double refuse_percent;
} vmx_policy;

/**
 * How full a pool is. Sizes are in bytes.
 */
typedef struct vmx_usage {
    /**
     * What the pool can hold.
     */
    uint64_t total;
    /**
     * What is occupied, by volumes and by anything else that shares the space.
     */
    uint64_t used;
    /**
     * What can still be written. `used + free` may be less than `total` where the store keeps a
     * reserve.
     */
    uint64_t free;
    /**
     * The sum of the virtual sizes of all volumes, snapshots included.
     */
    uint64_t provisioned;
    /**
     * Units of the store's metadata in all (inodes, say), where that can run out by itself;
     * otherwise `VMX_NONE`.
     */
    uint64_t metadata_total;
    /**
     * Units in use; or `VMX_NONE`.
     */
    uint64_t metadata_used;
    /**
     * In how many seconds data or metadata will be full if they go on growing as they did of late;
     * `VMX_NONE` where that is not known or nothing grows.
     */
    uint64_t time_to_full;
    /**
     * Occupied share of what can be occupied, in percent.
     */
    double used_percent;
    /**
     * Occupied share of the metadata, in percent; 0 where there is none.
     */
    double metadata_percent;
    /**
     * Virtual sizes promised over what the pool holds.
     */
    double overcommit;
    /**
     * How near to the limits of its policy the pool is.
     */
    vmx_pressure pressure;
    /**
     * 0.
     */
    uint32_t reserved;
} vmx_usage;

/**
 * A point in time: seconds since 1970-01-01 00:00:00 UTC, and nanoseconds (0 to 999999999) after
 * that second.
 */
typedef struct vmx_time {
    /**
     * Seconds since the epoch; negative before it.
     */
    int64_t seconds;
    /**
     * Nanoseconds after that.
     */
    int64_t nanoseconds;
} vmx_time;

#ifdef __cplusplus
extern "C" {
#endif // __cplusplus

/**
 * Makes a volume reachable for a host and says how. Lasts until `vmx_detach_volume`, beyond this
 * process. The same holder may repeat it. `options_size` is the size of the options; `attachment`
 * may be NULL.
 */
vmx_status vmx_attach_volume(const struct vmx_pool *pool,
                             const char *name,
                             const struct vmx_attach_options *options,
                             size_t options_size,
                             struct vmx_attachment **attachment,
                             struct vmx_error **err);

/**
 * Ends what `vmx_attach_volume` began, with everything flushed. Succeeds when the holder has
 * nothing attached, or the volume is gone. Fails with `VMX_BUSY` while the host still uses it.
 */
vmx_status vmx_detach_volume(const struct vmx_pool *pool,
                             const char *name,
                             const char *holder,
                             struct vmx_error **err);

/**
 * The volume.
 */
const char *vmx_attachment_volume(const struct vmx_attachment *attachment);

/**
 * The volume's identity: a stable serial number for the guest's disk.
 */
const char *vmx_attachment_id(const struct vmx_attachment *attachment);

/**
 * Who it is attached to.
 */
const char *vmx_attachment_holder(const struct vmx_attachment *attachment);

/**
 * For reading only, or for writing too.
 */
vmx_access vmx_attachment_access(const struct vmx_attachment *attachment);

/**
 * What the host finds.
 */
vmx_target vmx_attachment_target(const struct vmx_attachment *attachment);

/**
 * The absolute path of a file, a block device or a qcow2 image; otherwise NULL.
 */
const char *vmx_attachment_path(const struct vmx_attachment *attachment);

/**
 * NBD: the URI of the export, as clients take it; otherwise NULL.
 */
const char *vmx_attachment_nbd_uri(const struct vmx_attachment *attachment);

/**
 * iSCSI: the address of the portal, `host:port`; otherwise NULL.
 */
const char *vmx_attachment_iscsi_portal(const struct vmx_attachment *attachment);

/**
 * iSCSI: the name of the target (IQN); otherwise NULL.
 */
const char *vmx_attachment_iscsi_target(const struct vmx_attachment *attachment);

/**
 * iSCSI: the number of the logical unit; otherwise `VMX_NONE`.
 */
uint64_t vmx_attachment_iscsi_lun(const struct vmx_attachment *attachment);

/**
 * iSCSI: the unit serial number (VPD page 80h); otherwise NULL. A host that finds another one has
 * a wrong disk before it, and must not write to it.
 */
const char *vmx_attachment_iscsi_serial(const struct vmx_attachment *attachment);

/**
 * iSCSI: the name by which the initiator proves who it is; NULL without CHAP.
 */
const char *vmx_attachment_chap_user(const struct vmx_attachment *attachment);

/**
 * iSCSI: the absolute path of the file that holds the initiator's secret; NULL without CHAP.
 */
const char *vmx_attachment_chap_secret(const struct vmx_attachment *attachment);

/**
 * iSCSI: the name by which the target proves who it is; NULL without mutual CHAP.
 */
const char *vmx_attachment_mutual_chap_user(const struct vmx_attachment *attachment);

/**
 * iSCSI: the absolute path of the file that holds the target's secret; NULL without mutual CHAP.
 */
const char *vmx_attachment_mutual_chap_secret(const struct vmx_attachment *attachment);

/**
 * Frees what is known of an attachment, and does not detach. NULL is fine.
 */
void vmx_attachment_free(struct vmx_attachment *attachment);

/**
 * Finds what interrupted work left behind and, if asked, removes it. Safe beside running work.
 * `options` may be NULL; `options_size` is its size.
 */
vmx_status vmx_audit_pool(const struct vmx_pool *pool,
                          const struct vmx_audit_options *options,
                          size_t options_size,
                          struct vmx_report **report,
                          struct vmx_error **err);

/**
 * Reads everything that is stored and verifies it, and tells of what is damaged. Changes nothing.
 * `VMX_UNSUPPORTED` where the store keeps nothing to verify data by. `control` may be NULL.
 */
vmx_status vmx_scrub_pool(const struct vmx_pool *pool,
                          const struct vmx_control *control,
                          struct vmx_report **report,
                          struct vmx_error **err);

/**
 * Whether nothing is left that is wrong; what is merely foreign does not count.
 */
bool vmx_report_is_clean(const struct vmx_report *report);

/**
 * Number of volumes that were looked at.
 */
uint64_t vmx_report_volumes(const struct vmx_report *report);

/**
 * Number of findings.
 */
size_t vmx_report_finding_count(const struct vmx_report *report);

/**
 * What sort of thing a finding is, counted from 0; `VMX_FINDING_OTHER` past the last.
 */
vmx_finding vmx_report_finding_kind(const struct vmx_report *report,
                                    size_t index);

/**
 * The volume, file or object; NULL past the last.
 */
const char *vmx_report_finding_object(const struct vmx_report *report,
                                      size_t index);

/**
 * What is the matter, in a sentence; NULL past the last.
 */
const char *vmx_report_finding_detail(const struct vmx_report *report,
                                      size_t index);

/**
 * What it occupies, in bytes; `VMX_NONE` where that is not known.
 */
uint64_t vmx_report_finding_bytes(const struct vmx_report *report,
                                  size_t index);

/**
 * Whether this audit put it right.
 */
bool vmx_report_finding_is_repaired(const struct vmx_report *report,
                                    size_t index);

/**
 * Frees a report. NULL is fine.
 */
void vmx_report_free(struct vmx_report *report);

/**
 * Gives back now what nothing uses any more, and what the pool would otherwise give back in the
 * background, or never. Safe beside running work. `collected` may be NULL; `collected_size` is its
 * size.
 */
vmx_status vmx_collect_garbage(const struct vmx_pool *pool,
                               struct vmx_collected *collected,
                               size_t collected_size,
                               struct vmx_error **err);

/**
 * `vmx_read`, without waiting. `buffer` is the library's until the callback.
 */
vmx_status vmx_read_async(const struct vmx_device *device,
                          uint64_t offset,
                          void *buffer,
                          size_t length,
                          vmx_completion callback,
                          void *data,
                          struct vmx_error **err);

/**
 * `vmx_write`, without waiting. `buffer` must stay as it is until the callback.
 */
vmx_status vmx_write_async(const struct vmx_device *device,
                           uint64_t offset,
                           const void *buffer,
                           size_t length,
                           vmx_completion callback,
                           void *data,
                           struct vmx_error **err);

/**
 * `vmx_flush`, without waiting: covers the writes that were answered before it is started.
 */
vmx_status vmx_flush_async(const struct vmx_device *device,
                           vmx_completion callback,
                           void *data,
                           struct vmx_error **err);

/**
 * `vmx_discard`, without waiting.
 */
vmx_status vmx_discard_async(const struct vmx_device *device,
                             uint64_t offset,
                             uint64_t length,
                             vmx_completion callback,
                             void *data,
                             struct vmx_error **err);

/**
 * `vmx_write_zeroes`, without waiting.
 */
vmx_status vmx_write_zeroes_async(const struct vmx_device *device,
                                  uint64_t offset,
                                  uint64_t length,
                                  const struct vmx_zero_options *options,
                                  size_t options_size,
                                  vmx_completion callback,
                                  void *data,
                                  struct vmx_error **err);

/**
 * Makes a control. `progress` may be NULL; `data` is passed to it, and must stay valid as long as
 * an operation with this control runs.
 */
vmx_status vmx_new_control(vmx_progress progress,
                           void *data,
                           struct vmx_control **control,
                           struct vmx_error **err);

/**
 * Asks every operation that has this control to stop, now and later ones too. They return
 * `VMX_TIMED_OUT` soon, and remove what they had made. May be called from any thread and any
 * callback. NULL is fine, and a control that a fork took along does nothing.
 */
void vmx_cancel(const struct vmx_control *control);

/**
 * Whether `vmx_cancel` was called.
 */
bool vmx_control_is_cancelled(const struct vmx_control *control);

/**
 * Frees a control. NULL is fine. Operations that have it go on, and go on telling of progress.
 */
void vmx_control_free(struct vmx_control *control);

/**
 * Opens a volume's data path. `options` may be NULL, for reading only; `options_size` is its size.
 * Fails with `VMX_BUSY` if another writer holds it, `VMX_INVALID_INPUT` for writing to a snapshot.
 */
vmx_status vmx_open_volume(const struct vmx_pool *pool,
                           const char *name,
                           const struct vmx_open_options *options,
                           size_t options_size,
                           struct vmx_device **device,
                           struct vmx_error **err);

/**
 * The volume's name when it was opened.
 */
const char *vmx_device_name(const struct vmx_device *device);

/**
 * The size as far as it is known here, in bytes: grows when the volume is resized through the same
 * pool, and by `vmx_refresh_device`. 0 for NULL, and in a child of the process that opened it.
 */
uint64_t vmx_device_size(const struct vmx_device *device);

/**
 * For reading only, or for writing too.
 */
vmx_access vmx_device_access(const struct vmx_device *device);

/**
 * Looks the size up in the store, so that a resize by another process or host is seen. `size` may
 * be NULL.
 */
vmx_status vmx_refresh_device(const struct vmx_device *device,
                              uint64_t *size,
                              struct vmx_error **err);

/**
 * Reads `length` bytes from `offset` into `buffer`. What was never written, or was discarded, is
 * zeros. On failure the buffer is as it was. It may be NULL for no bytes.
 */
vmx_status vmx_read(const struct vmx_device *device,
                    uint64_t offset,
                    void *buffer,
                    size_t length,
                    struct vmx_error **err);

/**
 * Writes `length` bytes of `buffer` at `offset`. It may be NULL for no bytes.
 */
vmx_status vmx_write(const struct vmx_device *device,
                     uint64_t offset,
                     const void *buffer,
                     size_t length,
                     struct vmx_error **err);

/**
 * Makes every write that was answered before this call durable.
 */
vmx_status vmx_flush(const struct vmx_device *device,
                     struct vmx_error **err);

/**
 * Gives back the space of a range, which reads as zeros afterwards.
 */
vmx_status vmx_discard(const struct vmx_device *device,
                       uint64_t offset,
                       uint64_t length,
                       struct vmx_error **err);

/**
 * Makes a range read as zeros. `options` may be NULL; `options_size` is its size.
 */
vmx_status vmx_write_zeroes(const struct vmx_device *device,
                            uint64_t offset,
                            uint64_t length,
                            const struct vmx_zero_options *options,
                            size_t options_size,
                            struct vmx_error **err);

/**
 * Closes a volume once its last request is answered; does not flush. NULL is fine. Requests that
 * are under way go on.
 */
void vmx_device_free(struct vmx_device *device);

/**
 * What sort of failure it is: what the call returned. `VMX_OK` for NULL.
 */
vmx_status vmx_error_status(const struct vmx_error *error);

/**
 * The operation that failed, such as `create_volume`. NULL for NULL.
 */
const char *vmx_error_op(const struct vmx_error *error);

/**
 * Operation, sort and context in one line, for people. The causes are not in it. NULL for NULL.
 */
const char *vmx_error_message(const struct vmx_error *error);

/**
 * Whether the same call may succeed later without the caller changing anything.
 */
bool vmx_error_is_retryable(const struct vmx_error *error);

/**
 * How many pairs of key and value tell of the circumstances.
 */
size_t vmx_error_context_count(const struct vmx_error *error);

/**
 * The key of a pair, counted from 0. Usual keys: `pool`, `volume`, `path`, `argument` (of the C
 * function), `reason` (what is wrong, in a sentence), `help` (what can be done). NULL past the last.
 */
const char *vmx_error_context_key(const struct vmx_error *error,
                                  size_t index);

/**
 * The value of a pair, counted from 0. NULL past the last.
 */
const char *vmx_error_context_value(const struct vmx_error *error,
                                    size_t index);

/**
 * The first value under `key`, or NULL.
 */
const char *vmx_error_get(const struct vmx_error *error,
                          const char *key);

/**
 * How many causes there are, each the cause of the one before it.
 */
size_t vmx_error_cause_count(const struct vmx_error *error);

/**
 * A cause as text, counted from 0, the nearest first. NULL past the last.
 */
const char *vmx_error_cause(const struct vmx_error *error,
                            size_t index);

/**
 * Frees an error. NULL is fine.
 */
void vmx_error_free(struct vmx_error *error);

/**
 * Serves volumes of a pool over NBD, until `vmx_stop_export`. Fails, with nothing served, if a
 * volume cannot be opened or a place not be listened on. `options_size` is the size of the options.
 */
vmx_status vmx_start_export(const struct vmx_pool *pool,
                            const struct vmx_export_options *options,
                            size_t options_size,
                            struct vmx_export **exported,
                            struct vmx_error **err);

/**
 * At how many addresses it listens.
 */
size_t vmx_export_address_count(const struct vmx_export *exported);

/**
 * An address that it listens at, counted from 0, as in the options; a port 0 is replaced by the
 * real one. NULL past the last.
 */
const char *vmx_export_address(const struct vmx_export *exported,
                               size_t index);

/**
 * Where it answers `/metrics` and `/status`; NULL if it does not.
 */
const char *vmx_export_statistics_address(const struct vmx_export *exported);

/**
 * The NBD URI of a volume at an address (counted from 0), as clients take it; `volume` may be
 * NULL, for the default export. `*uri` is the caller's, for `vmx_string_free`.
 */
vmx_status vmx_get_export_uri(const struct vmx_export *exported,
                              size_t index,
                              const char *volume,
                              char **uri,
                              struct vmx_error **err);

/**
 * How a host reaches a served volume at an address (counted from 0), as of a volume that is attached:
 * for what hypervisors are given. It attaches nothing; `holder` is whom it is meant for.
 * `VMX_NOT_FOUND` for a volume that is not served.
 */
vmx_status vmx_get_export_attachment(const struct vmx_export *exported,
                                     size_t index,
                                     const char *volume,
                                     const char *holder,
                                     struct vmx_attachment **attachment,
                                     struct vmx_error **err);

/**
 * What an export does now, as the JSON that `/status` has. `*json` is the caller's, for
 * `vmx_string_free`. `VMX_INVALID_INPUT` once it was stopped.
 */
vmx_status vmx_get_export_status(const struct vmx_export *exported,
                                 char **json,
                                 struct vmx_error **err);

/**
 * Ends an export in order: nobody is let in any more, requests under way are answered, and every
 * volume is flushed and closed. What was answered is then durable. `VMX_TIMED_OUT` if clients or
 * the pool took longer and were cut off: it has ended then too. Stopping again is fine.
 */
vmx_status vmx_stop_export(const struct vmx_export *exported,
                           uint64_t within_milliseconds,
                           struct vmx_error **err);

/**
 * Frees an export. NULL is fine. One that was not stopped ends at once: clients are cut off.
 */
void vmx_export_free(struct vmx_export *exported);

/**
 * Begins to list extents of a volume. `query` may be NULL, for the allocated ones; `query_size` is
 * its size.
 */
vmx_status vmx_list_extents(const struct vmx_pool *pool,
                            const char *name,
                            const struct vmx_extent_query *query,
                            size_t query_size,
                            struct vmx_extents **extents,
                            struct vmx_error **err);

/**
 * Begins to list the allocated extents within a range of an open volume.
 */
vmx_status vmx_list_device_extents(const struct vmx_device *device,
                                   uint64_t offset,
                                   uint64_t length,
                                   struct vmx_extents **extents,
                                   struct vmx_error **err);

/**
 * The next extent; `*length` is 0 after the last, and the status `VMX_OK`.
 */
vmx_status vmx_next_extent(const struct vmx_extents *extents,
                           uint64_t *offset,
                           uint64_t *length,
                           struct vmx_error **err);

/**
 * How much the extents can be relied on.
 */
vmx_grade vmx_extents_grade(const struct vmx_extents *extents);

/**
 * The unit, in bytes, in which the pool tells blocks apart.
 */
uint64_t vmx_extents_granularity(const struct vmx_extents *extents);

/**
 * Frees extents, at their end or before. NULL is fine.
 */
void vmx_extents_free(struct vmx_extents *extents);

/**
 * Calls `freeze`, takes a snapshot of each of `count` members, all at once, and calls `thaw`. So
 * the snapshots are of one moment. `volumes` is NULL, or gets as many volumes, in the same order.
 *
 * Writing stands still for `deadline_milliseconds` at most (0: for 10000) from when `freeze` is
 * called; then `thaw` is called whatever the pools do, and the call fails with `VMX_TIMED_OUT`. It
 * is called after every `freeze`, also one that failed or still runs, again if it fails, and once
 * more after a `freeze` that returns late. What can be found wrong before is found before `freeze`
 * is called. If anything fails, no snapshot is left that was made here (`vmx_error_get(err,
 * "left_behind")` names those that could not be removed). The snapshots' names must be this call's
 * alone. `control` may be NULL; it cancels, and tells of no progress.
 *
 * Fails with `VMX_INVALID_INPUT` for no member or a snapshot that is named twice,
 * `VMX_ALREADY_EXISTS` if one is there, `VMX_UNAVAILABLE` if `freeze` or `thaw` does not return 0, and
 * as `vmx_snapshot_volume`.
 */
vmx_status vmx_snapshot_group(const struct vmx_group_member *members,
                              size_t count,
                              vmx_hold freeze,
                              vmx_hold thaw,
                              void *data,
                              uint64_t deadline_milliseconds,
                              const struct vmx_control *control,
                              struct vmx_volume **volumes,
                              struct vmx_error **err);

/**
 * What a hypervisor (a `vmx_hypervisor`) must be given to use an attached volume. Formats are
 * always given and never probed; what is attached for reading only is rendered read-only. Nothing
 * is run. `options` may be NULL.
 *
 * `VMX_UNSUPPORTED`, with another way to do it, if the hypervisor can't use this target or can't
 * be told a part of it. Nothing is left out silently.
 */
vmx_status vmx_render_attachment(const struct vmx_attachment *attachment,
                                 uint32_t hypervisor,
                                 const struct vmx_render_options *options,
                                 size_t options_size,
                                 struct vmx_descriptor **descriptor,
                                 struct vmx_error **err);

/**
 * All of it. QEMU's arguments are quoted for a POSIX shell, in one line.
 */
const char *vmx_descriptor_text(const struct vmx_descriptor *descriptor);

/**
 * How many parts the text has: QEMU's arguments, the QMP commands; otherwise 1.
 */
size_t vmx_descriptor_argument_count(const struct vmx_descriptor *descriptor);

/**
 * One of them, to be handed over as it is and never through a shell; NULL past the last.
 */
const char *vmx_descriptor_argument(const struct vmx_descriptor *descriptor,
                                    size_t index);

/**
 * The block node that holds the disk's content, where QEMU has one; otherwise NULL.
 */
const char *vmx_descriptor_node(const struct vmx_descriptor *descriptor);

/**
 * The serial number that the guest's disk gets: the volume's id. NULL where that can't be said.
 */
const char *vmx_descriptor_serial(const struct vmx_descriptor *descriptor);

/**
 * Frees a descriptor. NULL is fine.
 */
void vmx_descriptor_free(struct vmx_descriptor *descriptor);

/**
 * Makes a volume that reads as zeros. If it exists and was made with the same options, it is
 * returned as it is. `options_size` is the size of the options; `volume` may be NULL.
 */
vmx_status vmx_create_volume(const struct vmx_pool *pool,
                             const char *name,
                             const struct vmx_create_options *options,
                             size_t options_size,
                             struct vmx_volume **volume,
                             struct vmx_error **err);

/**
 * Looks a volume up, with everything that is known of it. `VMX_NOT_FOUND` if it does not exist.
 */
vmx_status vmx_get_volume(const struct vmx_pool *pool,
                          const char *name,
                          struct vmx_volume **volume,
                          struct vmx_error **err);

/**
 * Looks a volume up; `*volume` is NULL if it does not exist, and the status `VMX_OK`.
 */
vmx_status vmx_find_volume(const struct vmx_pool *pool,
                           const char *name,
                           struct vmx_volume **volume,
                           struct vmx_error **err);

/**
 * Changes the virtual size. Growing works while the volume is in use; the new part reads as zeros.
 * `options_size` is the size of the options; `volume` may be NULL.
 */
vmx_status vmx_resize_volume(const struct vmx_pool *pool,
                             const char *name,
                             const struct vmx_resize_options *options,
                             size_t options_size,
                             struct vmx_volume **volume,
                             struct vmx_error **err);

/**
 * Gives a volume another name. Works while it is in use. `volume` may be NULL.
 */
vmx_status vmx_rename_volume(const struct vmx_pool *pool,
                             const char *name,
                             const char *to,
                             struct vmx_volume **volume,
                             struct vmx_error **err);

/**
 * Deletes a volume; its snapshots and clones stay as they are. Succeeds if it does not exist.
 * Fails with `VMX_BUSY` while it is open or attached.
 */
vmx_status vmx_delete_volume(const struct vmx_pool *pool,
                             const char *name,
                             struct vmx_error **err);

/**
 * Makes `name`, a read-only image of `source` at this moment. It holds every write that was flushed
 * before the call. `control` and `volume` may be NULL.
 */
vmx_status vmx_snapshot_volume(const struct vmx_pool *pool,
                               const char *source,
                               const char *name,
                               const struct vmx_control *control,
                               struct vmx_volume **volume,
                               struct vmx_error **err);

/**
 * Makes `name`, a writable volume that starts with the content of `source` at this moment and
 * shares its blocks. `source` may be a volume or a snapshot. `control` and `volume` may be NULL.
 */
vmx_status vmx_clone_volume(const struct vmx_pool *pool,
                            const char *source,
                            const char *name,
                            const struct vmx_control *control,
                            struct vmx_volume **volume,
                            struct vmx_error **err);

/**
 * Makes `name`, a full and independent duplicate of `source` that shares no block with it. Moves
 * only the data, not the holes. `control` and `volume` may be NULL.
 */
vmx_status vmx_copy_volume(const struct vmx_pool *pool,
                           const char *source,
                           const char *name,
                           const struct vmx_control *control,
                           struct vmx_volume **volume,
                           struct vmx_error **err);

/**
 * Copies `source` into the pool `target`, of any kind, as `name`. It is made thin, or thick in a
 * pool that has no thin volumes, and removed again if the copy fails. `VMX_ALREADY_EXISTS` whenever
 * `name` is taken there. `control` and `volume` may be NULL.
 */
vmx_status vmx_copy_volume_to(const struct vmx_pool *pool,
                              const char *source,
                              const struct vmx_pool *target,
                              const char *name,
                              const struct vmx_control *control,
                              struct vmx_volume **volume,
                              struct vmx_error **err);

/**
 * Puts a volume's content and size back to those of `snapshot`, one of its own snapshots. It keeps
 * its name and identity. Fails with `VMX_BUSY` while it is open or attached. `control` and `volume`
 * may be NULL.
 */
vmx_status vmx_revert_volume(const struct vmx_pool *pool,
                             const char *name,
                             const char *snapshot,
                             const struct vmx_control *control,
                             struct vmx_volume **volume,
                             struct vmx_error **err);

/**
 * Makes a volume independent of the data files of others, with the same content, where reads may
 * have to look through a chain of them. Elsewhere there is nothing to do. `control` and `volume`
 * may be NULL.
 */
vmx_status vmx_flatten_volume(const struct vmx_pool *pool,
                              const char *name,
                              const struct vmx_control *control,
                              struct vmx_volume **volume,
                              struct vmx_error **err);

/**
 * Takes over something that exists in the pool's place and is not yet a volume. `what` is in the
 * pool's own terms: a path below the root of a directory pool, an LV of a volume group. `volume`
 * may be NULL.
 */
vmx_status vmx_adopt_volume(const struct vmx_pool *pool,
                            const char *what,
                            const char *name,
                            struct vmx_volume **volume,
                            struct vmx_error **err);

/**
 * Opens the pool at a URL, such as `dir:///srv/volumes` or `lvm://vg/thinpool?warn_percent=80`.
 * Changes nothing in it.
 */
vmx_status vmx_open_pool(const char *url,
                         struct vmx_pool **pool,
                         struct vmx_error **err);

/**
 * Opens the pool of a configuration, a JSON object with its URL under `url` and beside it options,
 * each a text, a number or a boolean: `{"url": "dir:///srv/volumes", "warn_percent": 80}`.
 */
vmx_status vmx_open_pool_json(const char *json,
                              struct vmx_pool **pool,
                              struct vmx_error **err);

/**
 * Its URL, without options.
 */
const char *vmx_pool_url(const struct vmx_pool *pool);

/**
 * Frees a pool. NULL is fine. What was opened through it stays open.
 */
void vmx_pool_free(struct vmx_pool *pool);

/**
 * What a pool can do. Does not change while it is open. `capabilities_size` is the structure's
 * size.
 */
vmx_status vmx_get_capabilities(const struct vmx_pool *pool,
                                struct vmx_capabilities *capabilities,
                                size_t capabilities_size,
                                struct vmx_error **err);

/**
 * The marks and limits that a pool applies. `policy_size` is the structure's size.
 */
vmx_status vmx_get_policy(const struct vmx_pool *pool,
                          struct vmx_policy *policy,
                          size_t policy_size,
                          struct vmx_error **err);

/**
 * How full a pool is. `usage_size` is the structure's size.
 */
vmx_status vmx_get_usage(const struct vmx_pool *pool,
                         struct vmx_usage *usage,
                         size_t usage_size,
                         struct vmx_error **err);

/**
 * The name of a status, such as `NotFound`: the same in every language that volmux speaks.
 * `Unknown` for a number that is none. Stays valid for ever.
 */
const char *vmx_status_name(int32_t status);

/**
 * `VMX_ABI_VERSION` of the library that runs, which may be another than that of the header.
 */
uint32_t vmx_abi_version(void);

/**
 * The version of the library that runs, such as `0.1.0`. Stays valid for ever.
 */
const char *vmx_version(void);

/**
 * Frees a text that the library gave away (`char **` of an output). NULL is fine.
 */
void vmx_string_free(char *string);

/**
 * Its name.
 */
const char *vmx_volume_name(const struct vmx_volume *volume);

/**
 * Its identity, a UUID as text: stays the same through rename, resize and revert, and is never
 * reused.
 */
const char *vmx_volume_id(const struct vmx_volume *volume);

/**
 * What a guest sees, in bytes.
 */
uint64_t vmx_volume_virtual_size(const struct vmx_volume *volume);

/**
 * What it occupies, shared blocks included, in bytes; `VMX_NONE` where the pool cannot tell
 * cheaply.
 */
uint64_t vmx_volume_allocated(const struct vmx_volume *volume);

/**
 * What deleting it would free, in bytes; `VMX_NONE` where that is not known. Listings leave it out
 * where it costs more than a look at the volume's metadata.
 */
uint64_t vmx_volume_exclusive(const struct vmx_volume *volume);

/**
 * In how many pieces the data lies, where the cost of snapshots and clones grows with that number;
 * otherwise `VMX_NONE`. Told by `vmx_get_volume`, not by listings.
 */
uint64_t vmx_volume_fragments(const struct vmx_volume *volume);

/**
 * How many data files a read may have to look through, where snapshots and clones are chains of
 * them; otherwise `VMX_NONE`. Told by `vmx_get_volume`, not by listings.
 */
uint64_t vmx_volume_depth(const struct vmx_volume *volume);

/**
 * Thin or thick.
 */
vmx_provisioning vmx_volume_provisioning(const struct vmx_volume *volume);

/**
 * Whether it is a snapshot, and so read-only.
 */
bool vmx_volume_is_snapshot(const struct vmx_volume *volume);

/**
 * How it came from another volume. That is history, not a dependency: the parent may be gone.
 */
vmx_origin vmx_volume_origin(const struct vmx_volume *volume);

/**
 * The parent's name when it came from it; NULL without a parent.
 */
const char *vmx_volume_parent_name(const struct vmx_volume *volume);

/**
 * The parent's identity; NULL without a parent.
 */
const char *vmx_volume_parent_id(const struct vmx_volume *volume);

/**
 * When it was made; for a snapshot the moment that it shows.
 */
struct vmx_time vmx_volume_created(const struct vmx_volume *volume);

/**
 * To how many holders it is attached.
 */
size_t vmx_volume_attachment_count(const struct vmx_volume *volume);

/**
 * A holder that it is attached to, counted from 0; NULL past the last.
 */
const char *vmx_volume_attachment_holder(const struct vmx_volume *volume,
                                         size_t index);

/**
 * What that holder may do with it.
 */
vmx_access vmx_volume_attachment_access(const struct vmx_volume *volume,
                                        size_t index);

/**
 * Whether that holder lets other writers in.
 */
vmx_sharing vmx_volume_attachment_sharing(const struct vmx_volume *volume,
                                          size_t index);

/**
 * Frees what is known of a volume. NULL is fine.
 */
void vmx_volume_free(struct vmx_volume *volume);

/**
 * Begins to list the volumes of a pool, in no particular order. Volumes made or deleted meanwhile
 * may or may not appear.
 */
vmx_status vmx_list_volumes(const struct vmx_pool *pool,
                            struct vmx_volumes **volumes,
                            struct vmx_error **err);

/**
 * The next volume; `*volume` is NULL after the last, and the status `VMX_OK`. After an error,
 * which tells of one volume that cannot be read, it goes on with the next call.
 */
vmx_status vmx_next_volume(const struct vmx_volumes *volumes,
                           struct vmx_volume **volume,
                           struct vmx_error **err);

/**
 * Frees a listing, at its end or before. NULL is fine.
 */
void vmx_volumes_free(struct vmx_volumes *volumes);

#ifdef __cplusplus
}  // extern "C"
#endif  // __cplusplus

#endif  /* VOLMUX_H */
