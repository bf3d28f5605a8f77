// Stands before the C library of the agent, for a kernel that has no GPIO: a socket that is opened as if it were a device is connected to,
// and what is asked of it by the ioctls of linux/gpio.h goes to the test behind it, with another socket for the answer. All else goes its way.

#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdint.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <unistd.h>

#define GPIO 0xB4

static int connected(const char *path) {
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    if (strlen(path) >= sizeof address.sun_path) return -1;
    strcpy(address.sun_path, path);
    int file = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
    if (file >= 0 && connect(file, (struct sockaddr *)&address, sizeof address) != 0) {
        close(file);
        return -1;
    }
    return file;
}

int open64(const char *path, int flags, ...) {
    va_list more;
    va_start(more, flags);
    mode_t mode = va_arg(more, mode_t);
    va_end(more);
    int file = syscall(SYS_openat, AT_FDCWD, path, flags | O_LARGEFILE, mode);
    return file < 0 && errno == ENXIO ? connected(path) : file;
}

static int ask(int file, uint32_t request, void *argument, size_t size) {
    int ends[2];
    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends) != 0) return -1;
    union {
        struct cmsghdr header;
        char bytes[CMSG_SPACE(sizeof(int))];
    } control = {0};
    struct iovec parts[2] = {{&request, sizeof request}, {argument, size}};
    struct msghdr message = {.msg_iov = parts, .msg_iovlen = 2, .msg_control = &control, .msg_controllen = sizeof control};
    struct cmsghdr *header = CMSG_FIRSTHDR(&message);
    *header = (struct cmsghdr){.cmsg_len = CMSG_LEN(sizeof(int)), .cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS};
    memcpy(CMSG_DATA(header), &ends[1], sizeof(int));
    ssize_t done = sendmsg(file, &message, MSG_NOSIGNAL);
    close(ends[1]);

    int32_t error = 0;
    parts[0] = (struct iovec){&error, sizeof error};
    message.msg_controllen = sizeof control;
    if (done >= 0) done = recvmsg(ends[0], &message, MSG_CMSG_CLOEXEC);
    close(ends[0]);
    // Nobody is behind it any more.
    if (done <= 0) error = ENODEV;
    if (error != 0) {
        errno = error;
        return -1;
    }
    // A request for lines ends with the file that these are.
    header = CMSG_FIRSTHDR(&message);
    if (header != NULL) memcpy((char *)argument + size - sizeof(int), CMSG_DATA(header), sizeof(int));
    return 0;
}

int ioctl(int file, unsigned long request, ...) {
    va_list more;
    va_start(more, request);
    void *argument = va_arg(more, void *);
    va_end(more);
    if (_IOC_TYPE(request) != GPIO) return syscall(SYS_ioctl, file, request, argument);
    return ask(file, request, argument, _IOC_SIZE(request));
}
