/* load_client.c: the load: N connections, each sends a request, waits for the whole reply, sends the
 * next. After a warm-up it reads the server's CPU clock, counts for a while, and reads it again.
 *
 * usage: load_client port connections bytes warm-up-seconds seconds server-pid [path]
 * Without a path a request is that many bytes and its echo the reply; with one it is an HTTP GET, and
 * every reply is taken to be as long as the first.
 * Prints one line of JSON: requests, seconds, CPU seconds of the server, latencies in us. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { BATCH = 256, LIMIT_MS = 30000 };

struct connection {
    int fd;
    size_t received, unsent; /* of the message under way */
    int64_t started;         /* ns: when its first byte was sent */
};

/* Latencies in a histogram of quarter octaves' sixteenths: 1.5 % wide, from 1 us on. */
static uint64_t histogram[64 * 64];

static int64_t clock_ns(clockid_t clock)
{
    struct timespec now;
    clock_gettime(clock, &now);
    return now.tv_sec * INT64_C(1000000000) + now.tv_nsec;
}

static void count_latency(int64_t ns)
{
    uint64_t value = ns < 64 ? 64 : (uint64_t)ns;
    int octave = 63 - __builtin_clzll(value);
    histogram[octave * 64 + (int)((value >> (octave - 6)) & 63)]++;
}

static double percentile_us(uint64_t total, double share)
{
    uint64_t seen = 0;
    for (int i = 0; i < 64 * 64; i++) {
        seen += histogram[i];
        if (histogram[i] && (double)seen >= share * (double)total)
            return (double)((UINT64_C(64) + (uint64_t)(i % 64)) << (i / 64 - 6)) / 1000;
    }
    return 0;
}

static void fail(const char *what)
{
    perror(what);
    exit(1);
}

static char *message, *sink;
static size_t size, reply; /* bytes of a request, of its reply */
enum { REPLY_MOST = 1 << 20 };

static void send_rest(struct connection *c)
{
    while (c->unsent) {
        /* a message fits the socket's buffer: only a very large one would wait here */
        ssize_t n = send(c->fd, message + size - c->unsent, c->unsent, MSG_NOSIGNAL);
        if (n < 0) {
            if (errno == EAGAIN)
                return;
            fail("send");
        }
        c->unsent -= (size_t)n;
    }
}

static void begin(struct connection *c)
{
    c->started = clock_ns(CLOCK_MONOTONIC);
    c->received = 0;
    c->unsent = size;
    send_rest(c);
}

/* Read one HTTP reply, patiently: its whole length. */
static size_t http_reply(int fd)
{
    size_t got = 0;
    while (got < REPLY_MOST - 1) {
        ssize_t n = recv(fd, sink + got, REPLY_MOST - 1 - got, 0);
        if (n <= 0)
            fail("first reply");
        got += (size_t)n;
        sink[got] = 0;
        char *body = strstr(sink, "\r\n\r\n"), *length = strcasestr(sink, "content-length:");
        if (!body)
            continue;
        if (!length || length > body || !strstr(sink, " 200 "))
            break;
        size_t whole = (size_t)(body + 4 - sink) + strtoul(length + 15, NULL, 10);
        if (got >= whole)
            return whole;
    }
    fprintf(stderr, "no usable reply: %.300s\n", sink);
    exit(1);
}

int main(int argc, char **argv)
{
    if (argc < 7) {
        fprintf(stderr, "usage: load_client port connections bytes warm-up seconds pid [path]\n");
        return 2;
    }
    int count = atoi(argv[2]);
    const char *path = argc > 7 ? argv[7] : NULL;
    size = reply = (size_t)atol(argv[3]);
    int64_t warm = (int64_t)(atof(argv[4]) * 1e9), measured = (int64_t)(atof(argv[5]) * 1e9);
    clockid_t server_clock;
    if (clock_getcpuclockid(atoi(argv[6]), &server_clock)) {
        fprintf(stderr, "no such server\n");
        return 1;
    }
    struct rlimit files;
    getrlimit(RLIMIT_NOFILE, &files);
    files.rlim_cur = files.rlim_max;
    setrlimit(RLIMIT_NOFILE, &files);
    sink = malloc(REPLY_MOST);
    if (path) {
        if (asprintf(&message, "GET %s HTTP/1.1\r\nHost: localhost\r\n\r\n", path) < 0)
            fail("asprintf");
        size = strlen(message);
    } else {
        message = malloc(size);
        memset(message, 'x', size);
    }
    struct connection *all = calloc((size_t)count, sizeof *all);
    struct sockaddr_in address = {.sin_family = AF_INET,
                                  .sin_port = htons((uint16_t)atoi(argv[1])),
                                  .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    int epoll = epoll_create1(0), one = 1;
    for (int i = 0; i < count; i++) {
        struct connection *c = &all[i];
        if ((c->fd = socket(AF_INET, SOCK_STREAM, 0)) < 0)
            fail("socket");
        if (connect(c->fd, (struct sockaddr *)&address, sizeof address) < 0)
            fail("connect");
        setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
        /* one exchange with patience, so that each connection is being served */
        struct timeval limit = {.tv_sec = 30};
        setsockopt(c->fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
        if (send(c->fd, message, size, MSG_NOSIGNAL) != (ssize_t)size)
            fail("first send");
        if (path)
            reply = http_reply(c->fd);
        else if (recv(c->fd, sink, size, MSG_WAITALL) != (ssize_t)size)
            fail("first echo");
    }
    for (int i = 0; i < count; i++) {
        struct epoll_event event = {.events = EPOLLIN, .data.ptr = &all[i]};
        if (epoll_ctl(epoll, EPOLL_CTL_ADD, all[i].fd, &event) < 0)
            fail("epoll_ctl");
        begin(&all[i]);
    }
    int64_t now = clock_ns(CLOCK_MONOTONIC), start = now + warm, end = start + measured;
    int64_t cpu_start = 0, real_start = 0;
    uint64_t requests = 0;
    while (now < end) {
        struct epoll_event events[BATCH];
        int n = epoll_wait(epoll, events, BATCH, LIMIT_MS);
        if (n == 0) {
            fprintf(stderr, "no reply for %d s\n", LIMIT_MS / 1000);
            return 1;
        }
        now = clock_ns(CLOCK_MONOTONIC);
        if (!real_start && now >= start) {
            real_start = now;
            cpu_start = clock_ns(server_clock);
        }
        for (int i = 0; i < n; i++) {
            struct connection *c = events[i].data.ptr;
            if (c->unsent)
                send_rest(c);
            ssize_t got = recv(c->fd, sink, reply - c->received, MSG_DONTWAIT);
            if (got == 0 || (got < 0 && errno != EAGAIN))
                fail("recv");
            if (got > 0)
                c->received += (size_t)got;
            if (c->received < reply)
                continue;
            if (real_start) {
                requests++;
                count_latency(clock_ns(CLOCK_MONOTONIC) - c->started);
            }
            begin(c);
        }
    }
    int64_t cpu = clock_ns(server_clock) - cpu_start;
    printf("{\"requests\": %llu, \"seconds\": %.6f, \"cpu_seconds\": %.6f, \"p50\": %.1f, "
           "\"p99\": %.1f}\n",
           (unsigned long long)requests, (double)(now - real_start) / 1e9, (double)cpu / 1e9,
           percentile_us(requests, 0.5), percentile_us(requests, 0.99));
    return 0;
}
