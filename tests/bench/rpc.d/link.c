// A slow link: forwards TCP connections at so many bytes per second in each direction, with small
// buffers and ordinary segments, so that what is queued is queued in the sender.
//
//   rpc_link TARGET-PORT BYTES-PER-SECOND      prints "ready PORT", until its input ends
#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define BUFFER_BYTES (16 << 10)
#define CHUNK_BYTES 4096
#define SEGMENT_BYTES 1448

struct direction {
    int from, to;
    double bytes_per_ns;
};

static int64_t now_ns(void)
{
    struct timespec ts;
    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (int64_t)ts.tv_sec * 1000000000 + ts.tv_nsec;
}

static void *forward(void *ud)
{
    struct direction d = *(struct direction *)ud;
    free(ud);
    char chunk[CHUNK_BYTES];
    double free_at = 0; // when the link has carried everything so far
    for (;;) {
        ssize_t n = read(d.from, chunk, sizeof chunk);
        if (n <= 0)
            break;
        double now = (double)now_ns();
        free_at = (free_at > now ? free_at : now) + (double)n / d.bytes_per_ns;
        struct timespec at = {.tv_sec = (time_t)(free_at / 1e9),
                              .tv_nsec = (long)((int64_t)free_at % 1000000000)};
        clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &at, NULL);
        for (ssize_t done = 0, k; done < n; done += k) {
            k = write(d.to, chunk + done, (size_t)(n - done));
            if (k <= 0) {
                n = -1;
                break;
            }
        }
        if (n < 0)
            break;
    }
    shutdown(d.from, SHUT_RDWR);
    shutdown(d.to, SHUT_RDWR);
    return NULL;
}

static int make_socket(void)
{
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    int size = BUFFER_BYTES, segment = SEGMENT_BYTES, one = 1;
    setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &size, sizeof size);
    setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &size, sizeof size);
    setsockopt(fd, IPPROTO_TCP, TCP_MAXSEG, &segment, sizeof segment);
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    return fd;
}

static void start(int from, int to, double bytes_per_s)
{
    struct direction *d = malloc(sizeof *d);
    pthread_t t;
    if (!d)
        exit(1);
    *d = (struct direction){from, to, bytes_per_s / 1e9};
    if (pthread_create(&t, NULL, forward, d) != 0)
        exit(1);
    pthread_detach(t);
}

int main(int argc, char **argv)
{
    if (argc != 3) {
        fprintf(stderr, "usage: rpc_link TARGET-PORT BYTES-PER-SECOND\n");
        return 2;
    }
    struct sockaddr_in target = {.sin_family = AF_INET,
                                 .sin_addr.s_addr = htonl(INADDR_LOOPBACK),
                                 .sin_port = htons((uint16_t)strtoul(argv[1], NULL, 10))};
    struct sockaddr_in own = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t len = sizeof own;
    int l = make_socket();
    if (bind(l, (struct sockaddr *)&own, sizeof own) != 0 || listen(l, 64) != 0 ||
        getsockname(l, (struct sockaddr *)&own, &len) != 0) {
        perror("rpc_link");
        return 1;
    }
    printf("ready %u\n", ntohs(own.sin_port));
    fflush(stdout);
    struct pollfd waiting[] = {{.fd = l, .events = POLLIN}, {.fd = STDIN_FILENO, .events = POLLIN}};
    while (poll(waiting, 2, -1) > 0 && !waiting[1].revents) {
        int client = accept(l, NULL, NULL), server = make_socket();
        if (client < 0 || connect(server, (struct sockaddr *)&target, sizeof target) != 0) {
            close(client);
            close(server);
            continue;
        }
        int one = 1;
        setsockopt(client, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
        start(client, server, strtod(argv[2], NULL));
        start(server, client, strtod(argv[2], NULL));
    }
    return 0;
}
