/* NULL for each pointer of each function: refused, or allowed as the header says, and never a crash.
 * What else an argument must not be. */

#include "check.h"

#define BAD(call) FAILS(VMX_INVALID_INPUT, call)

/* No UTF-8: a byte that none begins with. */
static const char *const LATIN1 = "caf\xe9";

static vmx_pool *pool;
static vmx_device *device;

static void never(void *data, vmx_status status, vmx_error *error) {
    (void)data, (void)status, (void)error;
    CHECK(!"a request that was refused has ended");
}

static int never_held(void *data) {
    (void)data;
    CHECK(!"what was refused is frozen");
    return 1;
}

static void groups(void) {
    vmx_volume *out[1] = {NULL};
    vmx_group_member member = {pool, "v", "g"};
    const char *const wrong[] = {NULL, LATIN1, "", "../x"};
#define GROUP(member, count, freeze, thaw)                                                     \
    BAD(vmx_snapshot_group(member, count, freeze, thaw, NULL, 0, NULL, out, &err))
    GROUP(NULL, 1, never_held, never_held);
    GROUP(NULL, 0, never_held, never_held);
    GROUP(&member, SIZE_MAX, never_held, never_held);
    GROUP(&member, 1, NULL, never_held);
    GROUP(&member, 1, never_held, NULL);
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        vmx_group_member volume = {pool, wrong[i], "g"}, snapshot = {pool, "v", wrong[i]};
        GROUP(&volume, 1, never_held, never_held);
        GROUP(&snapshot, 1, never_held, never_held);
    }
    member.pool = NULL;
    GROUP(&member, 1, never_held, never_held);
    CHECK(vmx_snapshot_group(NULL, 0, NULL, NULL, NULL, 0, NULL, NULL, NULL) ==
          VMX_INVALID_INPUT);
    CHECK(out[0] == NULL);
}

static void pools(void) {
    vmx_pool *out = NULL;
    BAD(vmx_open_pool(NULL, &out, &err));
    BAD(vmx_open_pool(LATIN1, &out, &err));
    BAD(vmx_open_pool("memory:", NULL, &err));
    BAD(vmx_open_pool_json(NULL, &out, &err));
    BAD(vmx_open_pool_json(LATIN1, &out, &err));
    BAD(vmx_open_pool_json("{\"url\": \"memory:\"}", NULL, &err));
    CHECK(vmx_open_pool(NULL, NULL, NULL) == VMX_INVALID_INPUT);
    CHECK(vmx_open_pool_json(NULL, NULL, NULL) == VMX_INVALID_INPUT);
    CHECK(out == NULL);
    CHECK(vmx_pool_url(NULL) == NULL);
    vmx_pool_free(NULL);

    vmx_capabilities capabilities;
    BAD(vmx_get_capabilities(NULL, &capabilities, sizeof capabilities, &err));
    BAD(vmx_get_capabilities(pool, NULL, sizeof capabilities, &err));
    CHECK(vmx_get_capabilities(NULL, NULL, 0, NULL) == VMX_INVALID_INPUT);
    vmx_policy policy;
    BAD(vmx_get_policy(NULL, &policy, sizeof policy, &err));
    BAD(vmx_get_policy(pool, NULL, sizeof policy, &err));
    CHECK(vmx_get_policy(NULL, NULL, 0, NULL) == VMX_INVALID_INPUT);
    vmx_usage usage;
    BAD(vmx_get_usage(NULL, &usage, sizeof usage, &err));
    BAD(vmx_get_usage(pool, NULL, sizeof usage, &err));
    CHECK(vmx_get_usage(NULL, NULL, 0, NULL) == VMX_INVALID_INPUT);
}

static void names(void) {
    vmx_volume *out = NULL;
    const char *const wrong[] = {NULL, LATIN1, "", "../x", "a b", ".a"};
    vmx_create_options create;
    memset(&create, 0, sizeof create);
    create.size = MIB;
    vmx_resize_options resize;
    memset(&resize, 0, sizeof resize);
    resize.size = 2 * MIB;
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        const char *name = wrong[i];
        BAD(vmx_create_volume(pool, name, &create, sizeof create, &out, &err));
        BAD(vmx_get_volume(pool, name, &out, &err));
        BAD(vmx_find_volume(pool, name, &out, &err));
        BAD(vmx_resize_volume(pool, name, &resize, sizeof resize, &out, &err));
        BAD(vmx_rename_volume(pool, name, "b", &out, &err));
        BAD(vmx_rename_volume(pool, "v", name, &out, &err));
        BAD(vmx_delete_volume(pool, name, &err));
        BAD(vmx_snapshot_volume(pool, name, "b", NULL, &out, &err));
        BAD(vmx_snapshot_volume(pool, "v", name, NULL, &out, &err));
        BAD(vmx_clone_volume(pool, name, "b", NULL, &out, &err));
        BAD(vmx_clone_volume(pool, "v", name, NULL, &out, &err));
        BAD(vmx_copy_volume(pool, name, "b", NULL, &out, &err));
        BAD(vmx_copy_volume(pool, "v", name, NULL, &out, &err));
        BAD(vmx_copy_volume_to(pool, name, pool, "b", NULL, &out, &err));
        BAD(vmx_copy_volume_to(pool, "v", pool, name, NULL, &out, &err));
        BAD(vmx_revert_volume(pool, name, "s", NULL, &out, &err));
        BAD(vmx_revert_volume(pool, "v", name, NULL, &out, &err));
        BAD(vmx_flatten_volume(pool, name, NULL, &out, &err));
        BAD(vmx_adopt_volume(pool, "what", name, &out, &err));
        vmx_device *opened = NULL;
        BAD(vmx_open_volume(pool, name, NULL, 0, &opened, &err));
        vmx_extents *extents = NULL;
        BAD(vmx_list_extents(pool, name, NULL, 0, &extents, &err));
        BAD(vmx_detach_volume(pool, name, "host", &err));
    }
    BAD(vmx_adopt_volume(pool, NULL, "b", &out, &err));
    BAD(vmx_adopt_volume(pool, LATIN1, "b", &out, &err));
    CHECK(out == NULL);
}

static void operations(void) {
    vmx_volume *out = NULL;
    vmx_create_options create;
    memset(&create, 0, sizeof create);
    create.size = MIB;
    BAD(vmx_create_volume(NULL, "b", &create, sizeof create, &out, &err));
    BAD(vmx_create_volume(pool, "b", NULL, sizeof create, &out, &err));
    CHECK(vmx_create_volume(NULL, NULL, NULL, 0, NULL, NULL) == VMX_INVALID_INPUT);
    BAD(vmx_get_volume(NULL, "v", &out, &err));
    BAD(vmx_get_volume(pool, "v", NULL, &err));
    CHECK(vmx_get_volume(NULL, NULL, NULL, NULL) == VMX_INVALID_INPUT);
    BAD(vmx_find_volume(NULL, "v", &out, &err));
    BAD(vmx_find_volume(pool, "v", NULL, &err));
    CHECK(vmx_find_volume(NULL, NULL, NULL, NULL) == VMX_INVALID_INPUT);
    vmx_resize_options resize;
    memset(&resize, 0, sizeof resize);
    resize.size = 2 * MIB;
    BAD(vmx_resize_volume(NULL, "v", &resize, sizeof resize, &out, &err));
    BAD(vmx_resize_volume(pool, "v", NULL, sizeof resize, &out, &err));
    CHECK(vmx_resize_volume(NULL, NULL, NULL, 0, NULL, NULL) == VMX_INVALID_INPUT);
    BAD(vmx_rename_volume(NULL, "v", "b", &out, &err));
    CHECK(vmx_rename_volume(NULL, NULL, NULL, NULL, NULL) == VMX_INVALID_INPUT);
    BAD(vmx_delete_volume(NULL, "v", &err));
    CHECK(vmx_delete_volume(NULL, NULL, NULL) == VMX_INVALID_INPUT);
    BAD(vmx_snapshot_volume(NULL, "v", "b", NULL, &out, &err));
    CHECK(vmx_snapshot_volume(NULL, NULL, NULL, NULL, NULL, NULL) == VMX_INVALID_INPUT);
    BAD(vmx_clone_volume(NULL, "v", "b", NULL, &out, &err));
    CHECK(vmx_clone_volume(NULL, NULL, NULL, NULL, NULL, NULL) == VMX_INVALID_INPUT);
    BAD(vmx_copy_volume(NULL, "v", "b", NULL, &out, &err));
    CHECK(vmx_copy_volume(NULL, NULL, NULL, NULL, NULL, NULL) == VMX_INVALID_INPUT);
    BAD(vmx_copy_volume_to(NULL, "v", pool, "b", NULL, &out, &err));
    BAD(vmx_copy_volume_to(pool, "v", NULL, "b", NULL, &out, &err));
    CHECK(vmx_copy_volume_to(NULL, NULL, NULL, NULL, NULL, NULL, NULL) == VMX_INVALID_INPUT);
    BAD(vmx_revert_volume(NULL, "v", "s", NULL, &out, &err));
    CHECK(vmx_revert_volume(NULL, NULL, NULL, NULL, NULL, NULL) == VMX_INVALID_INPUT);
    BAD(vmx_flatten_volume(NULL, "v", NULL, &out, &err));
    CHECK(vmx_flatten_volume(NULL, NULL, NULL, NULL, NULL) == VMX_INVALID_INPUT);
    BAD(vmx_adopt_volume(NULL, "what", "b", &out, &err));
    CHECK(vmx_adopt_volume(NULL, NULL, NULL, NULL, NULL) == VMX_INVALID_INPUT);
    CHECK(out == NULL);
    OK(vmx_find_volume(pool, "b", &out, &err));
    CHECK(out == NULL);
}

static void listings(void) {
    vmx_volumes *volumes = NULL;
    vmx_volume *volume = NULL;
    BAD(vmx_list_volumes(NULL, &volumes, &err));
    BAD(vmx_list_volumes(pool, NULL, &err));
    CHECK(vmx_list_volumes(NULL, NULL, NULL) == VMX_INVALID_INPUT);
    OK(vmx_list_volumes(pool, &volumes, &err));
    BAD(vmx_next_volume(NULL, &volume, &err));
    BAD(vmx_next_volume(volumes, NULL, &err));
    CHECK(vmx_next_volume(NULL, NULL, NULL) == VMX_INVALID_INPUT);
    vmx_volumes_free(volumes);
    vmx_volumes_free(NULL);

    vmx_extents *extents = NULL;
    vmx_extent_query query;
    memset(&query, 0, sizeof query);
    uint64_t offset = 7, length = 7;
    BAD(vmx_list_extents(NULL, "v", NULL, 0, &extents, &err));
    BAD(vmx_list_extents(pool, "v", NULL, 0, NULL, &err));
    query.changed_since = LATIN1;
    BAD(vmx_list_extents(pool, "v", &query, sizeof query, &extents, &err));
    CHECK(vmx_list_extents(NULL, NULL, NULL, 0, NULL, NULL) == VMX_INVALID_INPUT);
    BAD(vmx_list_device_extents(NULL, 0, MIB, &extents, &err));
    BAD(vmx_list_device_extents(device, 0, MIB, NULL, &err));
    CHECK(vmx_list_device_extents(NULL, 0, 0, NULL, NULL) == VMX_INVALID_INPUT);
    OK(vmx_list_device_extents(device, 0, MIB, &extents, &err));
    BAD(vmx_next_extent(NULL, &offset, &length, &err));
    BAD(vmx_next_extent(extents, NULL, &length, &err));
    BAD(vmx_next_extent(extents, &offset, NULL, &err));
    CHECK(vmx_next_extent(NULL, NULL, NULL, NULL) == VMX_INVALID_INPUT);
    CHECK(offset == 7 && length == 7);
    CHECK(vmx_extents_grade(NULL) == VMX_GRADE_ALLOCATED_ONLY);
    CHECK(vmx_extents_granularity(NULL) == 0);
    vmx_extents_free(extents);
    vmx_extents_free(NULL);
}

static void devices(void) {
    vmx_device *out = NULL;
    BAD(vmx_open_volume(NULL, "v", NULL, 0, &out, &err));
    BAD(vmx_open_volume(pool, "v", NULL, 0, NULL, &err));
    CHECK(vmx_open_volume(NULL, NULL, NULL, 0, NULL, NULL) == VMX_INVALID_INPUT);
    CHECK(vmx_device_name(NULL) == NULL && vmx_device_size(NULL) == 0);
    CHECK(vmx_device_access(NULL) == VMX_READ_ONLY);
    BAD(vmx_refresh_device(NULL, NULL, &err));
    OK(vmx_refresh_device(device, NULL, &err));
    CHECK(vmx_refresh_device(NULL, NULL, NULL) == VMX_INVALID_INPUT);
    char byte = 0;
    BAD(vmx_read(NULL, 0, &byte, 1, &err));
    BAD(vmx_read(device, 0, NULL, 1, &err));
    BAD(vmx_read(device, 0, &byte, SIZE_MAX, &err));
    CHECK(vmx_read(NULL, 0, NULL, 0, NULL) == VMX_INVALID_INPUT);
    BAD(vmx_write(NULL, 0, &byte, 1, &err));
    BAD(vmx_write(device, 0, NULL, 1, &err));
    BAD(vmx_write(device, 0, &byte, SIZE_MAX, &err));
    CHECK(vmx_write(NULL, 0, NULL, 0, NULL) == VMX_INVALID_INPUT);
    BAD(vmx_flush(NULL, &err));
    CHECK(vmx_flush(NULL, NULL) == VMX_INVALID_INPUT);
    BAD(vmx_discard(NULL, 0, 1, &err));
    CHECK(vmx_discard(NULL, 0, 1, NULL) == VMX_INVALID_INPUT);
    BAD(vmx_write_zeroes(NULL, 0, 1, NULL, 0, &err));
    CHECK(vmx_write_zeroes(NULL, 0, 1, NULL, 0, NULL) == VMX_INVALID_INPUT);
    vmx_device_free(NULL);

    BAD(vmx_read_async(NULL, 0, &byte, 1, never, NULL, &err));
    BAD(vmx_read_async(device, 0, NULL, 1, never, NULL, &err));
    BAD(vmx_read_async(device, 0, &byte, SIZE_MAX, never, NULL, &err));
    BAD(vmx_read_async(device, 0, &byte, 1, NULL, NULL, &err));
    CHECK(vmx_read_async(NULL, 0, NULL, 0, NULL, NULL, NULL) == VMX_INVALID_INPUT);
    BAD(vmx_write_async(NULL, 0, &byte, 1, never, NULL, &err));
    BAD(vmx_write_async(device, 0, NULL, 1, never, NULL, &err));
    BAD(vmx_write_async(device, 0, &byte, 1, NULL, NULL, &err));
    CHECK(vmx_write_async(NULL, 0, NULL, 0, NULL, NULL, NULL) == VMX_INVALID_INPUT);
    BAD(vmx_flush_async(NULL, never, NULL, &err));
    BAD(vmx_flush_async(device, NULL, NULL, &err));
    CHECK(vmx_flush_async(NULL, NULL, NULL, NULL) == VMX_INVALID_INPUT);
    BAD(vmx_discard_async(NULL, 0, 1, never, NULL, &err));
    BAD(vmx_discard_async(device, 0, 1, NULL, NULL, &err));
    CHECK(vmx_discard_async(NULL, 0, 1, NULL, NULL, NULL) == VMX_INVALID_INPUT);
    BAD(vmx_write_zeroes_async(NULL, 0, 1, NULL, 0, never, NULL, &err));
    BAD(vmx_write_zeroes_async(device, 0, 1, NULL, 0, NULL, NULL, &err));
    CHECK(vmx_write_zeroes_async(NULL, 0, 1, NULL, 0, NULL, NULL, NULL) == VMX_INVALID_INPUT);
}

static void attachments(void) {
    vmx_attachment *out = NULL;
    vmx_attach_options options;
    memset(&options, 0, sizeof options);
    const char *const wrong[] = {NULL, LATIN1, "", "a b"};
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        options.holder = wrong[i];
        BAD(vmx_attach_volume(pool, "v", &options, sizeof options, &out, &err));
        BAD(vmx_detach_volume(pool, "v", wrong[i], &err));
    }
    options.holder = "host";
    BAD(vmx_attach_volume(NULL, "v", &options, sizeof options, &out, &err));
    BAD(vmx_attach_volume(pool, NULL, &options, sizeof options, &out, &err));
    BAD(vmx_attach_volume(pool, "v", NULL, sizeof options, &out, &err));
    CHECK(vmx_attach_volume(NULL, NULL, NULL, 0, NULL, NULL) == VMX_INVALID_INPUT);
    BAD(vmx_detach_volume(NULL, "v", "host", &err));
    CHECK(vmx_detach_volume(NULL, NULL, NULL, NULL) == VMX_INVALID_INPUT);
    CHECK(out == NULL);
    CHECK(vmx_attachment_volume(NULL) == NULL && vmx_attachment_id(NULL) == NULL);
    CHECK(vmx_attachment_holder(NULL) == NULL && vmx_attachment_path(NULL) == NULL);
    CHECK(vmx_attachment_access(NULL) == VMX_READ_ONLY);
    CHECK(vmx_attachment_target(NULL) == VMX_TARGET_OTHER);
    CHECK(vmx_attachment_iscsi_portal(NULL) == NULL && vmx_attachment_nbd_uri(NULL) == NULL);
    CHECK(vmx_attachment_iscsi_target(NULL) == NULL);
    CHECK(vmx_attachment_iscsi_lun(NULL) == VMX_NONE);
    CHECK(vmx_attachment_iscsi_serial(NULL) == NULL);
    CHECK(vmx_attachment_chap_user(NULL) == NULL && vmx_attachment_chap_secret(NULL) == NULL);
    CHECK(vmx_attachment_mutual_chap_user(NULL) == NULL);
    CHECK(vmx_attachment_mutual_chap_secret(NULL) == NULL);
    vmx_attachment_free(NULL);
    vmx_descriptor *descriptor = NULL;
    BAD(vmx_render_attachment(NULL, VMX_QEMU, NULL, 0, &descriptor, &err));
    CHECK(vmx_render_attachment(NULL, 77, NULL, 0, NULL, NULL) == VMX_INVALID_INPUT);
    CHECK(descriptor == NULL);
    CHECK(vmx_descriptor_text(NULL) == NULL && vmx_descriptor_argument_count(NULL) == 0);
    CHECK(vmx_descriptor_argument(NULL, 0) == NULL && vmx_descriptor_node(NULL) == NULL);
    CHECK(vmx_descriptor_serial(NULL) == NULL);
    vmx_descriptor_free(NULL);
}

static void reports(void) {
    vmx_report *report = NULL;
    BAD(vmx_audit_pool(NULL, NULL, 0, &report, &err));
    BAD(vmx_audit_pool(pool, NULL, 0, NULL, &err));
    CHECK(vmx_audit_pool(NULL, NULL, 0, NULL, NULL) == VMX_INVALID_INPUT);
    BAD(vmx_scrub_pool(NULL, NULL, &report, &err));
    BAD(vmx_scrub_pool(pool, NULL, NULL, &err));
    CHECK(vmx_scrub_pool(NULL, NULL, NULL, NULL) == VMX_INVALID_INPUT);
    BAD(vmx_collect_garbage(NULL, NULL, 0, &err));
    OK(vmx_collect_garbage(pool, NULL, 0, &err));
    CHECK(vmx_collect_garbage(NULL, NULL, 0, NULL) == VMX_INVALID_INPUT);
    CHECK(report == NULL);
    CHECK(vmx_report_is_clean(NULL) && vmx_report_volumes(NULL) == 0);
    CHECK(vmx_report_finding_count(NULL) == 0);
    CHECK(vmx_report_finding_kind(NULL, 0) == VMX_FINDING_OTHER);
    CHECK(vmx_report_finding_object(NULL, 0) == NULL);
    CHECK(vmx_report_finding_detail(NULL, 0) == NULL);
    CHECK(vmx_report_finding_bytes(NULL, 0) == VMX_NONE);
    CHECK(!vmx_report_finding_is_repaired(NULL, 0));
    vmx_report_free(NULL);
}

static void exports(void) {
    vmx_export *out = NULL;
    vmx_export_volume volume;
    memset(&volume, 0, sizeof volume);
    volume.name = "s";
    const char *listen[] = {"tcp:127.0.0.1:0"};
    vmx_export_options options, good;
    memset(&good, 0, sizeof good);
    good.volumes = &volume;
    good.volume_count = 1;
    good.listen = listen;
    good.listen_count = 1;
    BAD(vmx_start_export(NULL, &good, sizeof good, &out, &err));
    BAD(vmx_start_export(pool, NULL, sizeof good, &out, &err));
    BAD(vmx_start_export(pool, &good, sizeof good, NULL, &err));
    CHECK(vmx_start_export(NULL, NULL, 0, NULL, NULL) == VMX_INVALID_INPUT);
#define WRONG(field, value)                                                   \
    do {                                                                      \
        options = good;                                                       \
        options.field = value;                                                \
        BAD(vmx_start_export(pool, &options, sizeof options, &out, &err));    \
    } while (0)
    WRONG(volumes, NULL);
    WRONG(volume_count, 0);
    WRONG(volume_count, SIZE_MAX);
    WRONG(every_volume, 1);
    WRONG(every_volume, 2);
    WRONG(listen, NULL);
    WRONG(listen_count, 0);
    WRONG(listen_fd_count, 1);
    WRONG(tls_verify_clients, 2);
    WRONG(tls_directory, LATIN1);
    WRONG(statistics, LATIN1);
    WRONG(statistics, "http://x");
    WRONG(connections, 5000);
    WRONG(option_length, 1);
    WRONG(option_length, UINT64_MAX);
    WRONG(request_length, 1);
    WRONG(in_flight_requests, UINT64_MAX);
    WRONG(in_flight_per_connection, 1);
    WRONG(in_flight_total, 1);
    options = good;
    options.volumes = NULL;
    options.volume_count = 0;
    options.every_volume = 1;
    options.access = 2;
    BAD(vmx_start_export(pool, &options, sizeof options, &out, &err));
    listen[0] = NULL;
    BAD(vmx_start_export(pool, &good, sizeof good, &out, &err));
    listen[0] = "127.0.0.1:0";
    BAD(vmx_start_export(pool, &good, sizeof good, &out, &err));
    listen[0] = "tcp:127.0.0.1:0";
    volume.name = NULL;
    BAD(vmx_start_export(pool, &good, sizeof good, &out, &err));
    volume.name = "s";
    volume.access = 7;
    BAD(vmx_start_export(pool, &good, sizeof good, &out, &err));
    volume.access = VMX_READ_WRITE;
    BAD(vmx_start_export(pool, &good, sizeof good, &out, &err));
    volume.access = VMX_READ_ONLY;
    CHECK(out == NULL);

    char *text = NULL;
    OK(vmx_start_export(pool, &good, sizeof good, &out, &err));
    BAD(vmx_get_export_uri(NULL, 0, NULL, &text, &err));
    BAD(vmx_get_export_uri(out, 1, NULL, &text, &err));
    BAD(vmx_get_export_uri(out, 0, "a/b", &text, &err));
    BAD(vmx_get_export_uri(out, 0, NULL, NULL, &err));
    CHECK(vmx_get_export_uri(NULL, 0, NULL, NULL, NULL) == VMX_INVALID_INPUT);
    vmx_attachment *attachment = NULL;
    BAD(vmx_get_export_attachment(NULL, 0, "s", "host", &attachment, &err));
    BAD(vmx_get_export_attachment(out, 1, "s", "host", &attachment, &err));
    BAD(vmx_get_export_attachment(out, 0, NULL, "host", &attachment, &err));
    BAD(vmx_get_export_attachment(out, 0, "s", NULL, &attachment, &err));
    BAD(vmx_get_export_attachment(out, 0, "s", LATIN1, &attachment, &err));
    BAD(vmx_get_export_attachment(out, 0, "s", "host", NULL, &err));
    CHECK(vmx_get_export_attachment(NULL, 0, NULL, NULL, NULL, NULL) == VMX_INVALID_INPUT);
    CHECK(attachment == NULL);
    BAD(vmx_get_export_status(NULL, &text, &err));
    BAD(vmx_get_export_status(out, NULL, &err));
    CHECK(vmx_get_export_status(NULL, NULL, NULL) == VMX_INVALID_INPUT);
    CHECK(text == NULL);
    BAD(vmx_stop_export(NULL, 0, &err));
    CHECK(vmx_stop_export(NULL, 0, NULL) == VMX_INVALID_INPUT);
    CHECK(vmx_export_address_count(NULL) == 0 && vmx_export_address(NULL, 0) == NULL);
    CHECK(vmx_export_address(out, 1) == NULL);
    CHECK(vmx_export_statistics_address(NULL) == NULL);
    CHECK(vmx_export_statistics_address(out) == NULL);
    vmx_export_free(out);
    vmx_export_free(NULL);
}

static void the_rest(void) {
    BAD(vmx_new_control(NULL, NULL, NULL, &err));
    CHECK(vmx_new_control(NULL, NULL, NULL, NULL) == VMX_INVALID_INPUT);
    vmx_cancel(NULL);
    CHECK(!vmx_control_is_cancelled(NULL));
    vmx_control_free(NULL);
    vmx_string_free(NULL);

    CHECK(vmx_volume_name(NULL) == NULL && vmx_volume_id(NULL) == NULL);
    CHECK(vmx_volume_virtual_size(NULL) == 0 && vmx_volume_allocated(NULL) == VMX_NONE);
    CHECK(vmx_volume_exclusive(NULL) == VMX_NONE && vmx_volume_fragments(NULL) == VMX_NONE);
    CHECK(vmx_volume_depth(NULL) == VMX_NONE && vmx_volume_provisioning(NULL) == VMX_THIN);
    CHECK(!vmx_volume_is_snapshot(NULL) && vmx_volume_origin(NULL) == VMX_ORIGIN_NONE);
    CHECK(vmx_volume_parent_name(NULL) == NULL && vmx_volume_parent_id(NULL) == NULL);
    CHECK(vmx_volume_created(NULL).seconds == 0);
    CHECK(vmx_volume_attachment_count(NULL) == 0);
    CHECK(vmx_volume_attachment_holder(NULL, 0) == NULL);
    CHECK(vmx_volume_attachment_access(NULL, 0) == VMX_READ_ONLY);
    CHECK(vmx_volume_attachment_sharing(NULL, 0) == VMX_EXCLUSIVE);
    vmx_volume_free(NULL);

    CHECK(vmx_error_status(NULL) == VMX_OK && vmx_error_op(NULL) == NULL);
    CHECK(vmx_error_message(NULL) == NULL && !vmx_error_is_retryable(NULL));
    CHECK(vmx_error_context_count(NULL) == 0 && vmx_error_context_key(NULL, 0) == NULL);
    CHECK(vmx_error_context_value(NULL, 0) == NULL && vmx_error_get(NULL, "a") == NULL);
    CHECK(vmx_error_get(NULL, NULL) == NULL);
    CHECK(vmx_error_cause_count(NULL) == 0 && vmx_error_cause(NULL, 0) == NULL);
    vmx_error_free(NULL);
}

int main(void) {
    OK(vmx_open_pool("memory:", &pool, &err));
    create(pool, "v", MIB);
    OK(vmx_snapshot_volume(pool, "v", "s", NULL, NULL, &err));
    device = open_as(pool, "v", VMX_READ_WRITE);
    pools();
    names();
    operations();
    groups();
    listings();
    devices();
    attachments();
    reports();
    exports();
    the_rest();
    vmx_device_free(device);
    vmx_pool_free(pool);
    wait_for_threads();
    puts("null: ok");
    return 0;
}
