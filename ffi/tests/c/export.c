/* An export and a client of it: `export DIRECTORY`, for a socket. */

#include "check.h"

#include <sys/socket.h>
#include <sys/un.h>

/* What a server of the protocol says first. */
static bool is_served(const char *address) {
    struct sockaddr_un place;
    memset(&place, 0, sizeof place);
    place.sun_family = AF_UNIX;
    CHECK(strncmp(address, "unix:", 5) == 0);
    snprintf(place.sun_path, sizeof place.sun_path, "%s", address + 5);
    int client = socket(AF_UNIX, SOCK_STREAM, 0);
    CHECK(client >= 0);
    char greeting[8] = "";
    bool served = connect(client, (struct sockaddr *)&place, sizeof place) == 0 &&
                  read(client, greeting, sizeof greeting) == sizeof greeting &&
                  memcmp(greeting, "NBDMAGIC", 8) == 0;
    close(client);
    return served;
}

/* A socket that listens, as a service manager would hand it over. */
static int listening(const char *path) {
    struct sockaddr_un place;
    memset(&place, 0, sizeof place);
    place.sun_family = AF_UNIX;
    snprintf(place.sun_path, sizeof place.sun_path, "%s", path);
    int server = socket(AF_UNIX, SOCK_STREAM, 0);
    CHECK(server >= 0 && bind(server, (struct sockaddr *)&place, sizeof place) == 0);
    CHECK(listen(server, 5) == 0);
    return server;
}

/* Sockets that are there already are used, and stay the caller's. */
static void sockets_can_be_handed_over(const vmx_pool *pool, const char *directory) {
    char path[100], address[128];
    snprintf(path, sizeof path, "%s/handed", directory);
    snprintf(address, sizeof address, "unix:%s", path);
    int fds[1];
    vmx_export_options options;
    memset(&options, 0, sizeof options);
    options.every_volume = 1;
    options.listen_fds = fds;
    options.listen_fd_count = 1;
    vmx_export *exported = NULL;
    fds[0] = -1;
    FAILS(VMX_INVALID_INPUT, vmx_start_export(pool, &options, sizeof options, &exported, &err));
    fds[0] = 1000000;
    FAILS(VMX_INVALID_INPUT, vmx_start_export(pool, &options, sizeof options, &exported, &err));
    fds[0] = socket(AF_INET, SOCK_STREAM, 0);
    CHECK(fds[0] >= 0);
    FAILS(VMX_INVALID_INPUT, vmx_start_export(pool, &options, sizeof options, &exported, &err));
    close(fds[0]);
    fds[0] = listening(path);
    OK(vmx_start_export(pool, &options, sizeof options, &exported, &err));
    CHECK(strcmp(vmx_export_address(exported, 0), address) == 0);
    CHECK(close(fds[0]) == 0);
    CHECK(is_served(address));
    vmx_export_free(exported);
    CHECK(!is_served(address));
    CHECK(unlink(path) == 0);
}

struct last {
    vmx_export *exported;
    int pipe[2];
};

static void free_it(void *data, vmx_status status, vmx_error *error) {
    struct last *last = (struct last *)data;
    CHECK(status == VMX_OK && error == NULL);
    vmx_export_free(last->exported);
    CHECK(write(last->pipe[1], "", 1) == 1);
}

/* In a callback, as the last handle but the device's, which is freed already. */
static void it_can_be_freed_in_a_callback(void) {
    vmx_pool *pool = NULL;
    OK(vmx_open_pool("memory:", &pool, &err));
    create(pool, "disk", MIB);
    vmx_device *device = open_as(pool, "disk", VMX_READ_ONLY);
    const char *const places[] = {"tcp:127.0.0.1:0"};
    vmx_export_options options;
    memset(&options, 0, sizeof options);
    options.every_volume = 1;
    options.listen = places;
    options.listen_count = 1;
    struct last last;
    CHECK(pipe(last.pipe) == 0);
    OK(vmx_start_export(pool, &options, sizeof options, &last.exported, &err));
    vmx_pool_free(pool);
    OK(vmx_flush_async(device, free_it, &last, &err));
    vmx_device_free(device);
    char byte;
    CHECK(read(last.pipe[0], &byte, 1) == 1);
    close(last.pipe[0]);
    close(last.pipe[1]);
}

int main(int argc, char **argv) {
    CHECK(argc == 2);
    vmx_pool *pool = NULL;
    OK(vmx_open_pool("memory:", &pool, &err));
    create(pool, "disk", MIB);
    char address[256];
    snprintf(address, sizeof address, "unix:%s/nbd", argv[1]);
    const char *const listen[] = {address, "tcp:127.0.0.1:0"};
    vmx_export_volume volume;
    memset(&volume, 0, sizeof volume);
    volume.name = "disk";
    volume.access = VMX_READ_WRITE;
    vmx_export_options options;
    memset(&options, 0, sizeof options);
    options.volumes = &volume;
    options.volume_count = 1;
    options.listen = listen;
    options.listen_count = 2;
    options.statistics = "tcp:127.0.0.1:0";
    options.connections = 10;
    vmx_export *exported = NULL;
    OK(vmx_start_export(pool, &options, sizeof options, &exported, &err));
    CHECK(vmx_export_address_count(exported) == 2);
    CHECK(strcmp(vmx_export_address(exported, 0), address) == 0);
    CHECK(strncmp(vmx_export_address(exported, 1), "tcp:127.0.0.1:", 14) == 0);
    CHECK(strcmp(vmx_export_address(exported, 1), listen[1]) != 0);
    CHECK(strncmp(vmx_export_statistics_address(exported), "tcp:127.0.0.1:", 14) == 0);
    CHECK(is_served(address));
    /* Only one writes. */
    FAILS(VMX_BUSY, vmx_delete_volume(pool, "disk", &err));

    char *text = NULL;
    OK(vmx_get_export_uri(exported, 0, "disk", &text, &err));
    CHECK(strncmp(text, "nbd+unix:///disk?socket=/", 25) == 0);
    vmx_string_free(text);
    OK(vmx_get_export_uri(exported, 1, NULL, &text, &err));
    CHECK(strncmp(text, "nbd://127.0.0.1:", 16) == 0);
    vmx_string_free(text);
    vmx_attachment *attachment = NULL;
    vmx_descriptor *descriptor = NULL;
    OK(vmx_get_export_attachment(exported, 0, "disk", "host-1", &attachment, &err));
    CHECK(vmx_attachment_target(attachment) == VMX_TARGET_NBD);
    CHECK(vmx_attachment_access(attachment) == VMX_READ_WRITE);
    CHECK(strcmp(vmx_attachment_holder(attachment), "host-1") == 0);
    CHECK(strncmp(vmx_attachment_nbd_uri(attachment), "nbd+unix:///disk?socket=/", 25) == 0);
    OK(vmx_render_attachment(attachment, VMX_QEMU, NULL, 0, &descriptor, &err));
    CHECK(strstr(vmx_descriptor_text(descriptor), address + 5) != NULL);
    vmx_descriptor_free(descriptor);
    vmx_attachment_free(attachment);
    attachment = NULL;
    create(pool, "other", MIB);
    FAILS(VMX_NOT_FOUND,
          vmx_get_export_attachment(exported, 0, "other", "host-1", &attachment, &err));
    FAILS(VMX_NOT_FOUND,
          vmx_get_export_attachment(exported, 0, "none", "host-1", &attachment, &err));
    CHECK(attachment == NULL);
    OK(vmx_get_export_status(exported, &text, &err));
    CHECK(text[0] == '{' && strstr(text, "\"disk\"") != NULL);
    vmx_string_free(text);

    OK(vmx_stop_export(exported, 10000, &err));
    OK(vmx_stop_export(exported, 0, &err));
    FAILS(VMX_INVALID_INPUT, vmx_get_export_status(exported, &text, &err));
    CHECK(!is_served(address));
    CHECK(vmx_export_address_count(exported) == 2);
    vmx_export_free(exported);

    sockets_can_be_handed_over(pool, argv[1]);

    /* Every volume, and ended by being freed. The pool may go first. */
    options.volumes = NULL;
    options.volume_count = 0;
    options.every_volume = 1;
    options.access = VMX_READ_WRITE;
    options.listen_count = 1;
    OK(vmx_start_export(pool, &options, sizeof options, &exported, &err));
    OK(vmx_snapshot_volume(pool, "disk", "snapshot", NULL, NULL, &err));
    OK(vmx_get_export_attachment(exported, 0, "snapshot", "host-1", &attachment, &err));
    CHECK(vmx_attachment_access(attachment) == VMX_READ_ONLY);
    vmx_attachment_free(attachment);
    OK(vmx_delete_volume(pool, "disk", &err));
    vmx_pool_free(pool);
    CHECK(is_served(address));
    vmx_export_free(exported);
    CHECK(!is_served(address));
    it_can_be_freed_in_a_callback();
    wait_for_threads();
    puts("export: ok");
    return 0;
}
