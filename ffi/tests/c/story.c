/* The life of volumes on a pool, and the contract of every pool: `story URL KIND`, of an empty pool
 * of kind memory, dir or object. */

#include "check.h"

#define BLOCK (64 * 1024)

static bool is_memory, is_dir;

static uint64_t size_of(const vmx_pool *pool, const char *name) {
    vmx_volume *volume = NULL;
    OK(vmx_get_volume(pool, name, &volume, &err));
    uint64_t size = vmx_volume_virtual_size(volume);
    vmx_volume_free(volume);
    return size;
}

static bool exists(const vmx_pool *pool, const char *name) {
    vmx_volume *volume = NULL;
    OK(vmx_find_volume(pool, name, &volume, &err));
    bool found = volume != NULL;
    vmx_volume_free(volume);
    return found;
}

static int count(const vmx_pool *pool) {
    vmx_volumes *volumes = NULL;
    OK(vmx_list_volumes(pool, &volumes, &err));
    int number = 0;
    for (;;) {
        vmx_volume *volume = NULL;
        OK(vmx_next_volume(volumes, &volume, &err));
        if (volume == NULL) {
            break;
        }
        CHECK(vmx_volume_name(volume) != NULL);
        number++;
        vmx_volume_free(volume);
    }
    vmx_volume *volume = NULL;
    OK(vmx_next_volume(volumes, &volume, &err));
    CHECK(volume == NULL);
    vmx_volumes_free(volumes);
    return number;
}

static void the_pool(const vmx_pool *pool) {
    vmx_capabilities can;
    OK(vmx_get_capabilities(pool, &can, sizeof can, &err));
    CHECK(can.snapshot == VMX_SUPPORT_NATIVE && can.clone == VMX_SUPPORT_NATIVE);
    CHECK(can.thin == VMX_SUPPORT_NATIVE && can.shrink == VMX_SUPPORT_NATIVE);
    CHECK(can.attach == (is_dir ? VMX_SUPPORT_NATIVE : VMX_SUPPORT_NONE));
    vmx_policy policy;
    OK(vmx_get_policy(pool, &policy, sizeof policy, &err));
    CHECK(policy.warn_percent == 99.0 && policy.refuse_percent == 100.0);
    CHECK(policy.overcommit_limit == 0.0);
    vmx_usage usage;
    OK(vmx_get_usage(pool, &usage, sizeof usage, &err));
    CHECK(usage.total > 0 && usage.free > 0 && usage.provisioned == 0);
    CHECK(usage.used_percent >= 0.0 && usage.used_percent < 100.0);
    CHECK(is_dir == (usage.metadata_total != VMX_NONE));
    CHECK(usage.time_to_full == VMX_NONE && usage.reserved == 0);
    CHECK(usage.pressure == VMX_PRESSURE_NORMAL);
    const char *scheme = is_memory ? "memory:" : is_dir ? "dir:" : "memory+object:";
    CHECK(strncmp(vmx_pool_url(pool), scheme, strlen(scheme)) == 0);
}

static void create_is_idempotent(const vmx_pool *pool) {
    vmx_create_options options;
    memset(&options, 0, sizeof options);
    options.size = 4 * MIB;
    vmx_volume *made = NULL, *again = NULL;
    OK(vmx_create_volume(pool, "web", &options, sizeof options, &made, &err));
    OK(vmx_create_volume(pool, "web", &options, sizeof options, &again, &err));
    CHECK(strcmp(vmx_volume_id(made), vmx_volume_id(again)) == 0);
    CHECK(strlen(vmx_volume_id(made)) == 36);
    CHECK(strcmp(vmx_volume_name(made), "web") == 0);
    CHECK(vmx_volume_virtual_size(made) == 4 * MIB);
    CHECK(vmx_volume_provisioning(made) == VMX_THIN);
    CHECK(vmx_volume_origin(made) == VMX_ORIGIN_NONE && !vmx_volume_is_snapshot(made));
    CHECK(vmx_volume_parent_name(made) == NULL && vmx_volume_parent_id(made) == NULL);
    vmx_time created = vmx_volume_created(made);
    CHECK(created.seconds > 1600000000 && created.nanoseconds >= 0);
    CHECK(created.nanoseconds < 1000000000);
    vmx_volume_free(made);
    vmx_volume_free(again);
    options.size = 8 * MIB;
    FAILS(VMX_ALREADY_EXISTS,
          vmx_create_volume(pool, "web", &options, sizeof options, NULL, &err));
    options.size = 0;
    FAILS(VMX_INVALID_INPUT,
          vmx_create_volume(pool, "none", &options, sizeof options, NULL, &err));
    CHECK(size_of(pool, "web") == 4 * MIB);
    CHECK(!exists(pool, "none"));
    FAILS(VMX_NOT_FOUND, vmx_get_volume(pool, "none", &made, &err));
    OK(vmx_delete_volume(pool, "none", &err));
}

static void unwritten_reads_as_zeros(const vmx_pool *pool) {
    CHECK(holds(pool, "web", 0, 0, BLOCK));
    CHECK(holds(pool, "web", 4 * MIB - BLOCK, 0, BLOCK));
    put(pool, "web", 0, 'a', BLOCK);
    put(pool, "web", 2 * MIB, 'b', BLOCK);
    CHECK(holds(pool, "web", 0, 'a', BLOCK));
    CHECK(holds(pool, "web", BLOCK, 0, BLOCK));
    vmx_device *device = open_as(pool, "web", VMX_READ_WRITE);
    CHECK(strcmp(vmx_device_name(device), "web") == 0);
    CHECK(vmx_device_size(device) == 4 * MIB);
    CHECK(vmx_device_access(device) == VMX_READ_WRITE);
    uint64_t size = 0;
    OK(vmx_refresh_device(device, &size, &err));
    CHECK(size == 4 * MIB);
    vmx_zero_options options;
    memset(&options, 0, sizeof options);
    options.may_discard = 1;
    OK(vmx_write(device, MIB, "0123456789", 10, &err));
    OK(vmx_write_zeroes(device, MIB, 5, &options, sizeof options, &err));
    OK(vmx_write_zeroes(device, MIB + 5, 3, NULL, 0, &err));
    char data[10];
    OK(vmx_read(device, MIB, data, sizeof data, &err));
    CHECK(memcmp(data, "\0\0\0\0\0\0\0\0"
                       "89",
                 10) == 0);
    OK(vmx_discard(device, MIB, BLOCK, &err));
    OK(vmx_read(device, MIB, data, sizeof data, &err));
    CHECK(memcmp(data, "\0\0\0\0\0\0\0\0\0\0", 10) == 0);
    OK(vmx_read(device, 0, NULL, 0, &err));
    OK(vmx_write(device, 0, NULL, 0, &err));
    FAILS(VMX_INVALID_INPUT, vmx_read(device, 4 * MIB - 5, data, sizeof data, &err));
    FAILS(VMX_INVALID_INPUT, vmx_write(device, 4 * MIB, "x", 1, &err));
    OK(vmx_flush(device, &err));
    vmx_device_free(device);
}

/* Whether the extents hold the range, and are in order; what they hold in all. */
static uint64_t covered(vmx_extents *extents, uint64_t offset, uint64_t length, bool *covers) {
    uint64_t sum = 0, end = 0, at = 0, bytes = 0;
    CHECK(vmx_extents_granularity(extents) > 0);
    *covers = false;
    for (;;) {
        OK(vmx_next_extent(extents, &at, &bytes, &err));
        if (bytes == 0) {
            break;
        }
        CHECK(at >= end);
        /* Those that touch are one here. */
        if (at <= offset && at + bytes >= offset + length) {
            *covers = true;
        }
        end = at + bytes;
        sum += bytes;
    }
    vmx_extents_free(extents);
    return sum;
}

static void extents_tell_what_is_there(const vmx_pool *pool) {
    vmx_extents *extents = NULL;
    bool covers = false;
    OK(vmx_list_extents(pool, "web", NULL, 0, &extents, &err));
    uint64_t all = covered(extents, 2 * MIB, BLOCK, &covers);
    CHECK(covers && all >= 2 * BLOCK && all < 4 * MIB);
    vmx_extent_query query;
    memset(&query, 0, sizeof query);
    query.offset = 2 * MIB;
    query.length = MIB;
    OK(vmx_list_extents(pool, "web", &query, sizeof query, &extents, &err));
    CHECK(covered(extents, 2 * MIB, BLOCK, &covers) <= MIB && covers);
    vmx_device *device = open_as(pool, "web", VMX_READ_ONLY);
    OK(vmx_list_device_extents(device, 2 * MIB, MIB, &extents, &err));
    vmx_device_free(device);
    CHECK(covered(extents, 2 * MIB, BLOCK, &covers) <= MIB && covers);
    query.length = 0;
    FAILS(VMX_INVALID_INPUT, vmx_list_extents(pool, "web", &query, sizeof query, &extents, &err));
    query.length = 3 * MIB;
    FAILS(VMX_INVALID_INPUT, vmx_list_extents(pool, "web", &query, sizeof query, &extents, &err));
    FAILS(VMX_NOT_FOUND, vmx_list_extents(pool, "none", NULL, 0, &extents, &err));
}

static void snapshots_stand_alone(const vmx_pool *pool) {
    vmx_volume *made = NULL, *again = NULL;
    OK(vmx_snapshot_volume(pool, "web", "monday", NULL, &made, &err));
    OK(vmx_snapshot_volume(pool, "web", "monday", NULL, &again, &err));
    CHECK(strcmp(vmx_volume_id(made), vmx_volume_id(again)) == 0);
    CHECK(vmx_volume_is_snapshot(made) && vmx_volume_origin(made) == VMX_ORIGIN_SNAPSHOT);
    CHECK(strcmp(vmx_volume_parent_name(made), "web") == 0);
    CHECK(strlen(vmx_volume_parent_id(made)) == 36);
    vmx_volume_free(made);
    vmx_volume_free(again);
    create(pool, "other", MIB);
    FAILS(VMX_ALREADY_EXISTS, vmx_snapshot_volume(pool, "other", "monday", NULL, NULL, &err));
    FAILS(VMX_NOT_FOUND, vmx_snapshot_volume(pool, "none", "tuesday", NULL, NULL, &err));
    vmx_open_options options;
    memset(&options, 0, sizeof options);
    options.access = VMX_READ_WRITE;
    vmx_device *device = NULL;
    FAILS(VMX_INVALID_INPUT,
          vmx_open_volume(pool, "monday", &options, sizeof options, &device, &err));
    CHECK(device == NULL);

    OK(vmx_clone_volume(pool, "monday", "test", NULL, &made, &err));
    OK(vmx_clone_volume(pool, "monday", "test", NULL, &again, &err));
    CHECK(strcmp(vmx_volume_id(made), vmx_volume_id(again)) == 0);
    CHECK(vmx_volume_origin(made) == VMX_ORIGIN_CLONE && !vmx_volume_is_snapshot(made));
    vmx_volume_free(made);
    vmx_volume_free(again);
    FAILS(VMX_ALREADY_EXISTS, vmx_clone_volume(pool, "other", "test", NULL, NULL, &err));
    OK(vmx_delete_volume(pool, "other", &err));

    put(pool, "web", 0, 'c', BLOCK);
    put(pool, "test", MIB, 'd', BLOCK);
    CHECK(holds(pool, "monday", 0, 'a', BLOCK));
    CHECK(holds(pool, "test", 0, 'a', BLOCK));
    CHECK(holds(pool, "web", MIB, 0, BLOCK));
}

static void changed_extents_hold_what_changed(const vmx_pool *pool) {
    vmx_extent_query query;
    memset(&query, 0, sizeof query);
    query.changed_since = "monday";
    vmx_extents *extents = NULL;
    OK(vmx_list_extents(pool, "web", &query, sizeof query, &extents, &err));
    CHECK(vmx_extents_grade(extents) <= VMX_GRADE_ALLOCATED_ONLY);
    bool exact = vmx_extents_grade(extents) == VMX_GRADE_EXACT;
    CHECK(exact || !is_memory);
    bool covers = false;
    uint64_t sum = covered(extents, 0, BLOCK, &covers);
    CHECK(covers && (!exact || sum == BLOCK));
    query.changed_since = "none";
    FAILS(VMX_NOT_FOUND, vmx_list_extents(pool, "web", &query, sizeof query, &extents, &err));
}

static void revert_puts_back(const vmx_pool *pool) {
    vmx_volume *volume = NULL;
    OK(vmx_revert_volume(pool, "web", "monday", NULL, &volume, &err));
    CHECK(strcmp(vmx_volume_name(volume), "web") == 0);
    vmx_volume_free(volume);
    CHECK(holds(pool, "web", 0, 'a', BLOCK));
    CHECK(holds(pool, "test", MIB, 'd', BLOCK));
    FAILS(VMX_INVALID_INPUT, vmx_revert_volume(pool, "test", "web", NULL, NULL, &err));
}

static void resize_copy_rename(const vmx_pool *pool) {
    vmx_resize_options options;
    memset(&options, 0, sizeof options);
    options.size = 8 * MIB;
    vmx_volume *volume = NULL;
    OK(vmx_resize_volume(pool, "web", &options, sizeof options, &volume, &err));
    CHECK(vmx_volume_virtual_size(volume) == 8 * MIB);
    vmx_volume_free(volume);
    CHECK(holds(pool, "web", 6 * MIB, 0, BLOCK));
    options.size = MIB;
    FAILS(VMX_INVALID_INPUT,
          vmx_resize_volume(pool, "web", &options, sizeof options, NULL, &err));
    CHECK(size_of(pool, "web") == 8 * MIB);
    options.allow_shrink = 1;
    OK(vmx_resize_volume(pool, "web", &options, sizeof options, NULL, &err));
    CHECK(size_of(pool, "web") == MIB);

    OK(vmx_copy_volume(pool, "test", "spare", NULL, &volume, &err));
    CHECK(vmx_volume_origin(volume) == VMX_ORIGIN_COPY);
    vmx_volume_free(volume);
    CHECK(holds(pool, "spare", MIB, 'd', BLOCK));
    OK(vmx_flatten_volume(pool, "test", NULL, &volume, &err));
    vmx_volume_free(volume);
    CHECK(holds(pool, "test", 0, 'a', BLOCK));
    FAILS(VMX_INVALID_INPUT, vmx_flatten_volume(pool, "monday", NULL, NULL, &err));
    OK(vmx_rename_volume(pool, "spare", "renamed", NULL, &err));
    FAILS(VMX_NOT_FOUND, vmx_rename_volume(pool, "spare", "renamed", NULL, &err));
    FAILS(VMX_ALREADY_EXISTS, vmx_rename_volume(pool, "renamed", "web", NULL, &err));
}

static void copies_go_to_other_pools(const vmx_pool *pool) {
    vmx_pool *other = NULL;
    OK(vmx_open_pool("memory:", &other, &err));
    OK(vmx_copy_volume_to(pool, "test", other, "there", NULL, NULL, &err));
    CHECK(holds(other, "there", MIB, 'd', BLOCK));
    FAILS(VMX_ALREADY_EXISTS, vmx_copy_volume_to(pool, "test", other, "there", NULL, NULL, &err));
    OK(vmx_copy_volume_to(other, "there", pool, "back", NULL, NULL, &err));
    CHECK(holds(pool, "back", 2 * MIB, 'b', BLOCK));
    vmx_pool_free(other);
}

static void one_writer(const vmx_pool *pool) {
    vmx_device *first = open_as(pool, "web", VMX_READ_WRITE), *second = NULL;
    vmx_open_options options;
    memset(&options, 0, sizeof options);
    options.access = VMX_READ_WRITE;
    FAILS(VMX_BUSY, vmx_open_volume(pool, "web", &options, sizeof options, &second, &err));
    FAILS(VMX_BUSY, vmx_delete_volume(pool, "web", &err));
    vmx_device *reader = open_as(pool, "web", VMX_READ_ONLY);
    FAILS(VMX_INVALID_INPUT, vmx_write(reader, 0, "x", 1, &err));
    vmx_device_free(reader);
    OK(vmx_write(first, 0, "first", 5, &err));
    OK(vmx_flush(first, &err));
    options.take_over = 1;
    OK(vmx_open_volume(pool, "web", &options, sizeof options, &second, &err));
    FAILS(VMX_FENCED, vmx_write(first, 0, "stale", 5, &err));
    char data[5];
    OK(vmx_read(second, 0, data, sizeof data, &err));
    CHECK(memcmp(data, "first", 5) == 0);
    vmx_device_free(first);
    vmx_device_free(second);

    vmx_capabilities can;
    OK(vmx_get_capabilities(pool, &can, sizeof can, &err));
    options.take_over = 0;
    options.sharing = VMX_SHARED;
    create(pool, "shared", MIB);
    if (can.shared_writers == VMX_SUPPORT_NONE) {
        CHECK(!is_memory && !is_dir);
        FAILS(VMX_UNSUPPORTED,
              vmx_open_volume(pool, "shared", &options, sizeof options, &first, &err));
        return;
    }
    OK(vmx_open_volume(pool, "shared", &options, sizeof options, &first, &err));
    OK(vmx_open_volume(pool, "shared", &options, sizeof options, &second, &err));
    OK(vmx_write(second, 0, "second", 6, &err));
    vmx_device_free(first);
    vmx_device_free(second);
}

static void it_is_rendered_for_every_hypervisor(const vmx_attachment *attachment) {
    vmx_render_options options;
    memset(&options, 0, sizeof options);
    options.node = "disk0";
    vmx_descriptor *descriptor = NULL;
    for (uint32_t hypervisor = VMX_QEMU; hypervisor <= VMX_XL; hypervisor++) {
        OK(vmx_render_attachment(attachment, hypervisor, NULL, 0, &descriptor, &err));
        CHECK(strstr(vmx_descriptor_text(descriptor), vmx_attachment_path(attachment)) != NULL);
        vmx_descriptor_free(descriptor);
    }
    OK(vmx_render_attachment(attachment, VMX_QEMU, &options, sizeof options, &descriptor, &err));
    CHECK(strcmp(vmx_descriptor_node(descriptor), "disk0") == 0);
    CHECK(strcmp(vmx_descriptor_serial(descriptor), vmx_attachment_id(attachment)) == 0);
    CHECK(vmx_descriptor_argument_count(descriptor) == 4);
    CHECK(strcmp(vmx_descriptor_argument(descriptor, 0), "-blockdev") == 0);
    CHECK(vmx_descriptor_argument(descriptor, 4) == NULL);
    vmx_descriptor_free(descriptor);
    descriptor = NULL;
    FAILS(VMX_UNSUPPORTED,
          vmx_render_attachment(attachment, VMX_HYPERV, NULL, 0, &descriptor, &err));
    options.vhdx = "D:\\disks\\web.vhdx";
    OK(vmx_render_attachment(attachment, VMX_HYPERV, &options, sizeof options, &descriptor, &err));
    CHECK(strstr(vmx_descriptor_text(descriptor), options.vhdx) != NULL);
    vmx_descriptor_free(descriptor);
    descriptor = NULL;
    options.vhdx = NULL;
    FAILS(VMX_INVALID_INPUT, vmx_render_attachment(attachment, 6, NULL, 0, &descriptor, &err));
    FAILS(VMX_INVALID_INPUT, vmx_render_attachment(attachment, VMX_QMP, NULL, 0, NULL, &err));
    options.reserved = 1;
    FAILS(VMX_INVALID_INPUT, vmx_render_attachment(attachment, VMX_QMP, &options, sizeof options,
                                                   &descriptor, &err));
    options.reserved = 0;
    options.node = "0 wrong";
    FAILS(VMX_INVALID_INPUT, vmx_render_attachment(attachment, VMX_QMP, &options, sizeof options,
                                                   &descriptor, &err));
    CHECK(descriptor == NULL);
}

static void attach_can_be_repeated(const vmx_pool *pool) {
    vmx_attach_options options;
    memset(&options, 0, sizeof options);
    options.holder = "host-1";
    options.access = VMX_READ_WRITE;
    vmx_attachment *first = NULL, *second = NULL;
    if (!is_dir) {
        FAILS(VMX_UNSUPPORTED,
              vmx_attach_volume(pool, "web", &options, sizeof options, &first, &err));
        FAILS(VMX_UNSUPPORTED, vmx_detach_volume(pool, "web", "host-1", &err));
        return;
    }
    OK(vmx_attach_volume(pool, "web", &options, sizeof options, &first, &err));
    OK(vmx_attach_volume(pool, "web", &options, sizeof options, &second, &err));
    CHECK(strcmp(vmx_attachment_path(first), vmx_attachment_path(second)) == 0);
    CHECK(vmx_attachment_path(first)[0] == '/' && access(vmx_attachment_path(first), R_OK) == 0);
    CHECK(strcmp(vmx_attachment_volume(first), "web") == 0);
    CHECK(strcmp(vmx_attachment_holder(first), "host-1") == 0);
    CHECK(strlen(vmx_attachment_id(first)) == 36);
    CHECK(vmx_attachment_access(first) == VMX_READ_WRITE);
    vmx_target target = vmx_attachment_target(first);
    CHECK(target == VMX_TARGET_FILE || target == VMX_TARGET_QCOW2);
    it_is_rendered_for_every_hypervisor(first);
    CHECK(vmx_attachment_iscsi_portal(first) == NULL);
    CHECK(vmx_attachment_iscsi_lun(first) == VMX_NONE);
    vmx_attachment_free(first);
    vmx_attachment_free(second);
    vmx_volume *volume = NULL;
    OK(vmx_get_volume(pool, "web", &volume, &err));
    CHECK(vmx_volume_attachment_count(volume) == 1);
    CHECK(strcmp(vmx_volume_attachment_holder(volume, 0), "host-1") == 0);
    CHECK(vmx_volume_attachment_access(volume, 0) == VMX_READ_WRITE);
    CHECK(vmx_volume_attachment_sharing(volume, 0) == VMX_EXCLUSIVE);
    CHECK(vmx_volume_attachment_holder(volume, 1) == NULL);
    vmx_volume_free(volume);
    options.holder = "host-2";
    FAILS(VMX_BUSY, vmx_attach_volume(pool, "web", &options, sizeof options, NULL, &err));
    FAILS(VMX_BUSY, vmx_delete_volume(pool, "web", &err));
    OK(vmx_detach_volume(pool, "web", "host-1", &err));
    OK(vmx_detach_volume(pool, "web", "host-1", &err));
    OK(vmx_detach_volume(pool, "none", "host-1", &err));
}

static void audit_finds_what_is_left(const vmx_pool *pool) {
    vmx_report *report = NULL;
    OK(vmx_audit_pool(pool, NULL, 0, &report, &err));
    CHECK(vmx_report_is_clean(report));
    CHECK(vmx_report_volumes(report) == (uint64_t)count(pool));
    CHECK(vmx_report_finding_count(report) == 0);
    vmx_report_free(report);
    if (!is_dir) {
        FAILS(VMX_UNSUPPORTED, vmx_adopt_volume(pool, "x", "adopted", NULL, &err));
    } else {
        const char *root = vmx_pool_url(pool) + strlen("dir://");
        char path[4096];
        snprintf(path, sizeof path, "%s/stray", root);
        FILE *file = fopen(path, "w");
        CHECK(file != NULL && fwrite("stray", 1, 5, file) == 5 && fclose(file) == 0);
        CHECK(truncate(path, (off_t)MIB) == 0);
        vmx_audit_options options;
        memset(&options, 0, sizeof options);
        options.repair = 1;
        OK(vmx_audit_pool(pool, &options, sizeof options, &report, &err));
        CHECK(vmx_report_is_clean(report));
        CHECK(vmx_report_finding_count(report) == 1);
        CHECK(vmx_report_finding_kind(report, 0) == VMX_FINDING_FOREIGN);
        CHECK(strstr(vmx_report_finding_object(report, 0), "stray") != NULL);
        CHECK(vmx_report_finding_detail(report, 0)[0] != '\0');
        CHECK(!vmx_report_finding_is_repaired(report, 0));
        CHECK(vmx_report_finding_bytes(report, 0) > 0);
        CHECK(vmx_report_finding_object(report, 1) == NULL);
        vmx_report_free(report);
        OK(vmx_adopt_volume(pool, "stray", "adopted", NULL, &err));
        CHECK(holds(pool, "adopted", 5, 0, 100) && !holds(pool, "adopted", 0, 0, 5));
        FAILS(VMX_NOT_FOUND, vmx_adopt_volume(pool, "stray", "again", NULL, &err));
    }
    vmx_status scrubbed = vmx_scrub_pool(pool, NULL, &report, &err);
    if (scrubbed == VMX_UNSUPPORTED) {
        FAILS(VMX_UNSUPPORTED, scrubbed);
    } else {
        OK(scrubbed);
        CHECK(vmx_report_is_clean(report));
        vmx_report_free(report);
    }
    vmx_collected collected;
    OK(vmx_collect_garbage(pool, &collected, sizeof collected, &err));
    OK(vmx_collect_garbage(pool, NULL, 0, &err));
}

static void parents_go_first(const vmx_pool *pool) {
    OK(vmx_delete_volume(pool, "web", &err));
    OK(vmx_delete_volume(pool, "monday", &err));
    CHECK(holds(pool, "test", 0, 'a', BLOCK));
    const char *rest[] = {"test", "renamed", "back", "shared", "adopted"};
    for (size_t i = 0; i < sizeof rest / sizeof *rest; i++) {
        OK(vmx_delete_volume(pool, rest[i], &err));
        OK(vmx_delete_volume(pool, rest[i], &err));
    }
    CHECK(count(pool) == 0);
}

int main(int argc, char **argv) {
    CHECK(argc == 3);
    is_memory = strcmp(argv[2], "memory") == 0;
    is_dir = strcmp(argv[2], "dir") == 0;
    char json[8192];
    snprintf(json, sizeof json, "{\"url\": \"%s\", \"warn_percent\": 99, \"refuse_percent\": 100}",
             argv[1]);
    vmx_pool *pool = NULL;
    OK(vmx_open_pool_json(json, &pool, &err));
    the_pool(pool);
    create_is_idempotent(pool);
    unwritten_reads_as_zeros(pool);
    extents_tell_what_is_there(pool);
    snapshots_stand_alone(pool);
    changed_extents_hold_what_changed(pool);
    revert_puts_back(pool);
    resize_copy_rename(pool);
    copies_go_to_other_pools(pool);
    one_writer(pool);
    attach_can_be_repeated(pool);
    audit_finds_what_is_left(pool);
    parents_go_first(pool);
    vmx_pool_free(pool);
    wait_for_threads();
    puts("story: ok");
    return 0;
}
