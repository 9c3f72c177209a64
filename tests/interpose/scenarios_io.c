/* scenarios_io.c: read, write, recv, send and their relatives on every kind of fd. See scenarios.h. */
#include "scenarios.h"

/* ---- receiving --------------------------------------------------------------------------------------- */

static char buf[1 << 20];

FAMILY(read_waits_for_data, pair_names)
{
    int p[2];
    make_pair(kind, p);
    if (in_peer(SOON)) {
        act_now();
        write(p[1], "hello\n", 6);
        done();
    }
    long n = SAY(read(p[0], buf, 100));
    say_acted();
    say_bytes("read", buf, n > 0 ? (size_t)n : 0);
}

FAMILY(readv_waits_for_data, pair_names)
{
    int p[2];
    char a[3] = "..", b[10] = ".........";
    struct iovec iov[] = {{a, 2}, {b, 9}};
    make_pair(kind, p);
    if (in_peer(SOON)) {
        act_now();
        write(p[1], "hello\n", 6);
        done();
    }
    SAY(readv(p[0], iov, 2));
    say_acted();
    say_bytes("first", a, 2);
    say_bytes("second", b, 9);
}

FAMILY(recv_waits_for_data, socket_pair_names)
{
    int p[2];
    make_pair(socket_pairs[kind], p);
    if (in_peer(SOON)) {
        act_now();
        send(p[1], "hello", 5, 0);
        done();
    }
    long n = SAY(recv(p[0], buf, 3, 0));
    say_acted();
    say_bytes("recv", buf, n > 0 ? (size_t)n : 0);
    SAY(recv(p[0], buf, 10, MSG_DONTWAIT));
}

FAMILY(recvfrom_tells_the_sender, socket_pair_names)
{
    int p[2];
    make_pair(socket_pairs[kind], p);
    if (in_peer(SOON)) {
        send(p[1], "hello", 5, 0);
        done();
    }
    struct sockaddr_in addr = {0};
    socklen_t len = sizeof addr;
    SAY(recvfrom(p[0], buf, 10, MSG_TRUNC, (struct sockaddr *)&addr, &len));
    say("len %u family %d", len, addr.sin_family);
}

FAMILY(recvmsg_fills_header, socket_pair_names)
{
    int p[2];
    make_pair(socket_pairs[kind], p);
    if (in_peer(SOON)) {
        send(p[1], "hello world", 11, 0);
        done();
    }
    char a[3], b[4], control[64];
    struct iovec iov[] = {{a, 3}, {b, 4}};
    struct sockaddr_in addr;
    struct msghdr m = {.msg_name = &addr,
                       .msg_namelen = sizeof addr,
                       .msg_iov = iov,
                       .msg_iovlen = 2,
                       .msg_control = control,
                       .msg_controllen = sizeof control};
    SAY(recvmsg(p[0], &m, 0));
    say_bytes("a", a, 3);
    say_bytes("b", b, 4);
    say("name %u control %zu flags %x", m.msg_namelen, m.msg_controllen, m.msg_flags);
}

FAMILY(read_at_end_of_stream, stream_names)
{
    int p[2];
    make_pair(streams[kind], p);
    if (in_peer(SOON)) {
        close(p[0]);
        write(p[1], "x\n", 2);
        done();
    }
    close(p[1]);
    SAY(read(p[0], buf, 10));
    while (wait(NULL) > 0)
        ;
    SAY(read(p[0], buf, 10));
    SAY(read(p[0], buf, 10));
}

FAMILY(nonblocking_read_returns_eagain, pair_names)
{
    int p[2];
    make_pair(kind, p);
    fcntl(p[0], F_SETFL, fcntl(p[0], F_GETFL) | O_NONBLOCK);
    SAY(read(p[0], buf, 10));
    struct iovec iov = {buf, 10};
    SAY(readv(p[0], &iov, 1));
    if (is_socket_kind(kind))
        SAY(recv(p[0], buf, 10, MSG_WAITALL));
    write(p[1], "ab\n", 3);
    pause_ms(2);
    SAY(read(p[0], buf, 10));
    say("flags %x", fcntl(p[0], F_GETFL) & O_NONBLOCK);
}

FAMILY(dontwait_is_kept, socket_pair_names)
{
    int p[2];
    make_pair(socket_pairs[kind], p);
    SAY(recv(p[0], buf, 10, MSG_DONTWAIT));
    SAY(recvfrom(p[0], buf, 10, MSG_DONTWAIT, NULL, NULL));
    SAY(send(p[1], "abc", 3, MSG_DONTWAIT));
    SAY(recv(p[0], buf, 10, MSG_DONTWAIT | MSG_PEEK));
    say("flags %x", fcntl(p[0], F_GETFL) & O_NONBLOCK);
}

FAMILY(recv_timeout_returns_eagain, socket_pair_names)
{
    int p[2];
    make_pair(socket_pairs[kind], p);
    set_timeout(p[0], SO_RCVTIMEO, 30);
    int64_t start = clock_ms();
    SAY(recv(p[0], buf, 10, 0));
    say("%s", clock_ms() - start >= 29 ? "waited" : "too early");
    SAY(read(p[0], buf, 10));
    set_timeout(p[0], SO_RCVTIMEO, 0);
    if (in_peer(SOON)) {
        act_now();
        send(p[1], "late", 4, 0);
        done();
    }
    SAY(recv(p[0], buf, 10, 0));
    say_acted();
}

FAMILY(recv_interrupted_by_signal, socket_pair_names)
{
    int p[2];
    make_pair(socket_pairs[kind], p);
    on_signal(SIGUSR1, 0);
    pid_t peer = signal_me(SIGUSR1);
    SAY(recv(p[0], buf, 10, 0));
    SAY(read(p[0], buf, 10));
    struct iovec iov = {buf, 10};
    struct msghdr m = {.msg_iov = &iov, .msg_iovlen = 1};
    SAY(recvmsg(p[0], &m, 0));
    signal_me_no_more(peer);
    say("handlers ran: %d", signals_seen > 0);
}

FAMILY(read_interrupted_by_signal, pair_names)
{
    int p[2];
    make_pair(kind, p);
    on_signal(SIGUSR1, 0);
    pid_t peer = signal_me(SIGUSR1);
    SAY(read(p[0], buf, 10));
    signal_me_no_more(peer);
}

FAMILY(read_restarts_after_signal, pair_names)
{
    int p[2];
    make_pair(kind, p);
    on_signal(SIGUSR1, SA_RESTART);
    pid_t peer = signal_me(SIGUSR1);
    if (in_peer(3 * SOON)) {
        act_now();
        write(p[1], "there\n", 6);
        done();
    }
    SAY(read(p[0], buf, 10));
    say_acted();
    signal_me_no_more(peer);
    say("handlers ran: %d", signals_seen > 0);
}

FAMILY(recv_with_timeout_does_not_restart, socket_pair_names)
{
    int p[2];
    make_pair(socket_pairs[kind], p);
    set_timeout(p[0], SO_RCVTIMEO, 5000);
    on_signal(SIGUSR1, SA_RESTART);
    pid_t peer = signal_me(SIGUSR1);
    SAY(recv(p[0], buf, 10, 0));
    signal_me_no_more(peer);
}

static const char *const stream_socket_names[] = {"unix_stream", "tcp", NULL};
static const int stream_sockets[] = {UNIX_STREAM, TCP};

static void send_in_pieces(int fd, int pieces, size_t size)
{
    static char piece[100000];
    for (int i = 0; i < pieces; i++) {
        memset(piece, 'a' + i, size);
        write(fd, piece, size);
        pause_ms(5);
    }
}

FAMILY(waitall_waits_for_all, stream_socket_names)
{
    int p[2];
    make_pair(stream_sockets[kind], p);
    if (in_peer(SOON)) {
        send_in_pieces(p[1], 5, 2000);
        done();
    }
    long n = SAY(recv(p[0], buf, 10000, MSG_WAITALL));
    say_bytes("all", buf, n > 0 ? (size_t)n : 0);
}

FAMILY(waitall_ends_at_end_of_stream, stream_socket_names)
{
    int p[2];
    make_pair(stream_sockets[kind], p);
    if (in_peer(SOON)) {
        close(p[0]);
        send_in_pieces(p[1], 2, 10);
        done();
    }
    close(p[1]);
    SAY(recv(p[0], buf, 10000, MSG_WAITALL));
    SAY(recv(p[0], buf, 10000, MSG_WAITALL));
}

FAMILY(waitall_times_out_with_part, stream_socket_names)
{
    int p[2];
    make_pair(stream_sockets[kind], p);
    set_timeout(p[0], SO_RCVTIMEO, 50);
    write(p[1], "some", 4);
    SAY(recv(p[0], buf, 100, MSG_WAITALL));
    SAY(recv(p[0], buf, 100, MSG_WAITALL));
}

FAMILY(waitall_interrupted_with_part, stream_socket_names)
{
    int p[2];
    make_pair(stream_sockets[kind], p);
    on_signal(SIGUSR1, 0);
    write(p[1], "some", 4);
    pid_t peer = signal_me(SIGUSR1);
    SAY(recv(p[0], buf, 100, MSG_WAITALL));
    SAY(recv(p[0], buf, 100, MSG_WAITALL));
    signal_me_no_more(peer);
}

FAMILY(waitall_vector, stream_socket_names)
{
    int p[2];
    char a[7], b[5000], c[100];
    struct iovec iov[] = {{a, 7}, {b, 5000}, {NULL, 0}, {c, 100}};
    struct msghdr m = {.msg_iov = iov, .msg_iovlen = 4};
    make_pair(stream_sockets[kind], p);
    if (in_peer(SOON)) {
        send_in_pieces(p[1], 4, 1500);
        done();
    }
    SAY(recvmsg(p[0], &m, MSG_WAITALL));
    say_bytes("a", a, sizeof a);
    say_bytes("b", b, sizeof b);
    say_bytes("c", c, sizeof c);
    say("vector %zu %zu flags %x", iov[0].iov_len, iov[1].iov_len, m.msg_flags);
}

FAMILY(peek_leaves_data, socket_pair_names)
{
    int p[2];
    make_pair(socket_pairs[kind], p);
    if (in_peer(SOON)) {
        send(p[1], "hello", 5, 0);
        done();
    }
    SAY(recv(p[0], buf, 3, MSG_PEEK));
    SAY(recv(p[0], buf, 10, MSG_PEEK));
    SAY(recv(p[0], buf, 10, 0));
}

SCENARIO(peek_waitall_waits_on_tcp)
{
    int p[2];
    make_pair(TCP, p);
    if (in_peer(SOON)) {
        close(p[0]);
        send_in_pieces(p[1], 4, 100);
        done();
    }
    close(p[1]);
    long n = SAY(recv(p[0], buf, 300, MSG_PEEK | MSG_WAITALL));
    say_bytes("peek", buf, n > 0 ? (size_t)n : 0);
    n = SAY(recv(p[0], buf, 400, MSG_WAITALL));
    say_bytes("recv", buf, n > 0 ? (size_t)n : 0);
    SAY(recv(p[0], buf, 400, MSG_PEEK | MSG_WAITALL));
}

SCENARIO(peek_waitall_takes_what_is_there_on_unix)
{
    int p[2];
    make_pair(UNIX_STREAM, p);
    if (in_peer(SOON)) {
        act_now();
        write(p[1], "some", 4);
        done();
    }
    SAY(recv(p[0], buf, 300, MSG_PEEK | MSG_WAITALL));
    say_acted();
    write(p[1], "more", 4);
    SAY(recv(p[0], buf, 300, MSG_PEEK | MSG_WAITALL));
    SAY(recv(p[0], buf, 8, MSG_WAITALL));
}

FAMILY(rcvlowat_is_kept, stream_socket_names)
{
    int p[2], low = 250;
    make_pair(stream_sockets[kind], p);
    MUST(setsockopt(p[0], SOL_SOCKET, SO_RCVLOWAT, &low, sizeof low));
    if (in_peer(SOON)) {
        send_in_pieces(p[1], 2, 100);
        act_now();
        send_in_pieces(
            p[1], 1, 300); /* as much again: TCP wakes nobody for less, whoever took some before */
        done();
    }
    SAY(recv(p[0], buf, 1000, 0) >= 250);
    say_acted();
    socklen_t len = sizeof low;
    SAY(getsockopt(p[0], SOL_SOCKET, SO_RCVLOWAT, &low, &len));
    say("%d", low);
}

FAMILY(waitall_on_messages_takes_one, socket_pair_names)
{
    int p[2];
    make_pair(socket_pairs[kind], p);
    set_timeout(p[0], SO_RCVTIMEO, 60);
    send(p[1], "one", 3, 0);
    send(p[1], "two", 3, 0);
    pause_ms(2);
    SAY(recv(p[0], buf, 100, MSG_WAITALL));
    say_bytes("got", buf, 8);
}

SCENARIO(waitall_stops_at_urgent_data)
{
    int p[2];
    make_pair(TCP, p);
    if (in_peer(SOON)) {
        write(p[1], "before", 6);
        send(p[1], "U", 1, MSG_OOB);
        pause_ms(SOON);
        write(p[1], "after", 5);
        pause_ms(SOON);
        done();
    }
    memset(buf, 0, 20);
    SAY(recv(p[0], buf, 20, MSG_WAITALL));
    say_bytes("before", buf, 20);
    char c = 0;
    SAY(recv(p[0], &c, 1, MSG_OOB));
    say("urgent %c", c);
    SAY(recv(p[0], buf, 5, MSG_WAITALL));
    SAY(recv(p[0], &c, 1, MSG_OOB));
}

SCENARIO(recv_reset_reports_once)
{
    int p[2];
    make_pair(TCP, p);
    struct linger abort_it = {.l_onoff = 1, .l_linger = 0};
    if (in_peer(SOON)) {
        close(p[0]);
        setsockopt(p[1], SOL_SOCKET, SO_LINGER, &abort_it, sizeof abort_it);
        close(p[1]);
        done();
    }
    close(p[1]);
    SAY(recv(p[0], buf, 10, 0));
    SAY(recv(p[0], buf, 10, 0));
}

SCENARIO(waitall_keeps_reset_for_next_call)
{
    int p[2];
    make_pair(TCP, p);
    struct linger abort_it = {.l_onoff = 1, .l_linger = 0};
    if (in_peer(SOON)) {
        close(p[0]);
        write(p[1], "part", 4);
        pause_ms(2 * SOON);
        setsockopt(p[1], SOL_SOCKET, SO_LINGER, &abort_it, sizeof abort_it);
        close(p[1]);
        done();
    }
    close(p[1]);
    SAY(recv(p[0], buf, 10, MSG_WAITALL));
    SAY(recv(p[0], buf, 10, 0));
    SAY(recv(p[0], buf, 10, 0));
}

SCENARIO(zero_length_reads)
{
    for (int k = 0; k < PAIR_KINDS; k++) {
        int p[2];
        make_pair(k, p);
        struct iovec iov[2] = {{buf, 0}, {NULL, 0}};
        say("%s", pair_names[k]);
        SAY(read(p[0], buf, 0));
        SAY(write(p[1], buf, 0));
        if (k != UDP && k != UNIX_DGRAM && k != UNIX_SEQPACKET) {
            SAY(readv(p[0], iov, 2));
            SAY(writev(p[1], iov, 2));
        }
        SAY(readv(p[0], iov, 0));
        SAY(writev(p[1], iov, 0));
        close(p[0]);
        close(p[1]);
    }
}

SCENARIO(empty_vector_takes_no_datagram)
{
    int p[2];
    make_pair(UDP, p);
    struct iovec iov = {buf, 0};
    send(p[1], "stay", 4, 0);
    pause_ms(2);
    SAY(readv(p[0], &iov, 1));
    SAY(read(p[0], buf, 0));
    SAY(recv(p[0], buf, 10, MSG_DONTWAIT));
}

SCENARIO(empty_datagrams_arrive)
{
    for (int k = UNIX_DGRAM; k <= UNIX_SEQPACKET; k++) {
        int p[2];
        make_pair(k, p);
        if (in_peer(SOON)) {
            send(p[1], "", 0, 0);
            send(p[1], "x", 1, 0);
            done();
        }
        SAY(recv(p[0], buf, 10, 0));
        SAY(recv(p[0], buf, 10, 0));
    }
}

FAMILY(bad_buffers_fault, pair_names)
{
    int p[2];
    if (!may_fault)
        return;
    make_pair(kind, p);
    write(p[1], "data\n", 5);
    pause_ms(2);
    void *bad = (void *)8;
    struct iovec iov = {bad, 5};
    SAY(readv(p[0], (struct iovec *)bad, 1));
    SAY(readv(p[0], &iov, 1));
    SAY(writev(p[1], (struct iovec *)bad, 1));
    SAY(writev(p[1], &iov, 1));
    SAY(write(p[1], bad, 5));
    SAY(readv(p[0], &iov, -1));
    SAY(readv(p[0], &iov, 5000));
    if (is_socket_kind(kind)) {
        struct msghdr m = {.msg_iov = bad, .msg_iovlen = 1};
        SAY(sendmsg(p[1], bad, 0));
        SAY(sendmsg(p[1], &m, 0));
        SAY(recvmsg(p[0], bad, 0));
        SAY(recvmsg(p[0], &m, MSG_DONTWAIT));
        SAY(send(p[1], bad, 5, 0));
    }
}

SCENARIO(bad_fds)
{
    int fds[] = {-1,
                 999,
                 (int)MUST(open("/dev/null", O_RDONLY | O_PATH)),
                 (int)MUST(open("/", O_RDONLY)),
                 (int)MUST(open("/dev/null", O_WRONLY)),
                 (int)MUST(open("/dev/null", O_RDONLY))};
    for (size_t i = 0; i < sizeof fds / sizeof *fds; i++) {
        int fd = fds[i];
        struct iovec iov = {buf, 5};
        struct msghdr m = {.msg_iov = &iov, .msg_iovlen = 1};
        SAY(read(fd, buf, 5));
        SAY(write(fd, buf, 5));
        SAY(readv(fd, &iov, 1));
        SAY(writev(fd, &iov, 1));
        SAY(recv(fd, buf, 5, 0));
        SAY(recvfrom(fd, buf, 5, 0, NULL, NULL));
        SAY(recvmsg(fd, &m, 0));
        SAY(send(fd, buf, 5, 0));
        SAY(sendto(fd, buf, 5, 0, NULL, 0));
        SAY(sendmsg(fd, &m, 0));
        SAY(accept(fd, NULL, NULL));
        SAY(connect(fd, (struct sockaddr *)buf, 16));
        SAY(close(fd));
    }
}

SCENARIO(unconnected_sockets)
{
    int types[] = {SOCK_STREAM, SOCK_DGRAM, SOCK_SEQPACKET};
    for (int i = 0; i < 3; i++)
        for (int family = AF_UNIX; family <= AF_INET; family++) {
            int fd = socket(family, types[i], 0);
            if (fd < 0)
                continue;
            set_timeout(fd, SO_RCVTIMEO, 20);
            say("family %d type %d", family, types[i]);
            SAY(send(fd, "x", 1, MSG_NOSIGNAL));
            SAY(recv(fd, buf, 1, 0));
            SAY(accept(fd, NULL, NULL));
            close(fd);
        }
}

/* ---- sending ----------------------------------------------------------------------------------------- */

FAMILY(write_is_complete, stream_names)
{
    int p[2];
    make_pair(streams[kind], p);
    for (size_t i = 0; i < sizeof buf; i++)
        buf[i] = (char)('a' + i % 23);
    size_t size = streams[kind] == PTY ? 20000 : sizeof buf;
    if (in_peer(SOON)) {
        close(p[1]);
        shared[1] = (int)drain(p[0], size);
        shared[2] = 1;
        done();
    }
    SAY(write(p[1], buf, size));
    while (!shared[2])
        pause_ms(1);
    say("arrived: %d", shared[1]);
}

FAMILY(writev_is_complete, stream_names)
{
    int p[2];
    make_pair(streams[kind], p);
    size_t size = streams[kind] == PTY ? 10000 : 300000;
    memset(buf, 'v', sizeof buf);
    struct iovec iov[] = {{buf, size}, {buf, 0}, {buf, 1}, {buf, size - 1}};
    if (in_peer(SOON)) {
        close(p[1]);
        shared[1] = (int)drain(p[0], 2 * size);
        shared[2] = 1;
        done();
    }
    SAY(writev(p[1], iov, 4));
    while (!shared[2])
        pause_ms(1);
    say("arrived: %d; vector untouched: %d", shared[1],
        iov[0].iov_len == size && iov[3].iov_base == buf);
}

FAMILY(send_is_complete, stream_socket_names)
{
    int p[2];
    make_pair(stream_sockets[kind], p);
    if (in_peer(SOON)) {
        close(p[1]);
        shared[1] = (int)drain(p[0], 3 * sizeof buf);
        shared[2] = 1;
        done();
    }
    SAY(send(p[1], buf, sizeof buf, 0));
    SAY(sendto(p[1], buf, sizeof buf, 0, NULL, 0));
    struct iovec iov[] = {{buf, 100000}, {buf, sizeof buf - 100000}};
    struct msghdr m = {.msg_iov = iov, .msg_iovlen = 2};
    SAY(sendmsg(p[1], &m, 0));
    while (!shared[2])
        pause_ms(1);
    say("arrived: %d", shared[1]);
}

FAMILY(full_nonblocking_write, stream_names)
{
    int p[2];
    make_pair(streams[kind], p);
    fill(p[1]);
    fcntl(p[1], F_SETFL, fcntl(p[1], F_GETFL) | O_NONBLOCK);
    SAY(write(p[1], buf, 10000));
    struct iovec iov[2] = {{buf, 10000}, {buf, 5}};
    SAY(writev(p[1], iov, 2));
    if (is_socket_kind(streams[kind]))
        SAY(send(p[1], buf, 10000, 0));
}

FAMILY(send_timeout, stream_socket_names)
{
    int p[2];
    make_pair(stream_sockets[kind], p);
    fill(p[1]);
    set_timeout(p[1], SO_SNDTIMEO, 30);
    int64_t start = clock_ms();
    SAY(send(p[1], buf, 100000, 0));
    say("%s", clock_ms() - start >= 29 ? "waited" : "too early");
    SAY(write(p[1], buf, 1000));
}

FAMILY(send_timeout_with_part, stream_socket_names)
{
    int p[2];
    make_pair(stream_sockets[kind], p);
    set_timeout(p[1], SO_SNDTIMEO, 60);
    static char huge[16 << 20];
    long n = send(p[1], huge, sizeof huge, 0);
    say("part: %d", n > 0 && n < (long)sizeof huge);
}

FAMILY(write_interrupted_with_part, stream_names)
{
    int p[2];
    make_pair(streams[kind], p);
    on_signal(SIGUSR1, 0);
    static char huge[16 << 20];
    pid_t peer = signal_me(SIGUSR1);
    long n = write(p[1], huge, sizeof huge);
    say("part: %d", n > 0 && n < (long)sizeof huge);
    fill(p[1]);
    SAY(write(p[1], huge, sizeof huge));
    signal_me_no_more(peer);
}

FAMILY(write_to_closed_stream_raises_sigpipe, stream_names)
{
    int p[2];
    if (streams[kind] == PTY)
        return;
    make_pair(streams[kind], p);
    on_signal(SIGPIPE, 0);
    close(p[0]);
    write(p[1], "x", 1); /* TCP learns of it by this */
    pause_ms(5);
    signals_seen = 0;
    SAY(write(p[1], "x", 1));
    say("signals %d", signals_seen);
    struct iovec iov[] = {{"a", 1}, {"b", 1}};
    SAY(writev(p[1], iov, 2));
    say("signals %d", signals_seen);
    if (is_socket_kind(streams[kind])) {
        SAY(send(p[1], "x", 1, MSG_NOSIGNAL));
        say("signals %d", signals_seen);
        SAY(send(p[1], "x", 1, 0));
        say("signals %d", signals_seen);
    }
}

FAMILY(reader_leaves_during_write, stream_names)
{
    int p[2];
    if (streams[kind] == PTY)
        return;
    make_pair(streams[kind], p);
    on_signal(SIGPIPE, 0);
    static char huge[16 << 20];
    if (in_peer(SOON)) {
        close(p[1]);
        drain(p[0], 1000);
        done();
    }
    close(p[0]);
    long n = write(p[1], huge, sizeof huge);
    say("part: %d", n > 0 && n < (long)sizeof huge);
    say("signals %d", signals_seen);
    SAY(write(p[1], huge, sizeof huge));
    say("signals %d", signals_seen);
    SAY(write(p[1], huge, sizeof huge));
}

SCENARIO(sigpipe_kills)
{
    int p[2];
    make_pair(UNIX_STREAM, p);
    signal(SIGPIPE, SIG_DFL);
    close(p[0]);
    SAY(write(p[1], "x", 1));
    say("not reached");
}

FAMILY(datagram_waits_for_room, socket_pair_names)
{
    int p[2];
    if (socket_pairs[kind] == UDP) /* loopback UDP drops rather than waits */
        return;
    make_pair(socket_pairs[kind], p);
    fill(p[1]);
    if (in_peer(SOON)) {
        act_now();
        for (int i = 0; i < 200; i++)
            if (recv(p[0], buf, sizeof buf, MSG_DONTWAIT) < 0)
                pause_ms(1);
        done();
    }
    SAY(send(p[1], "room", 4, 0));
    say_acted();
}

SCENARIO(unconnected_unix_datagram_waits_for_room)
{
    struct sockaddr_un addr = {.sun_family = AF_UNIX};
    int r = (int)MUST(socket(AF_UNIX, SOCK_DGRAM, 0)),
        w = (int)MUST(socket(AF_UNIX, SOCK_DGRAM, 0));
    socklen_t len = sizeof addr;
    MUST(bind(r, (struct sockaddr *)&addr, sizeof(sa_family_t))); /* abstract, autobound */
    MUST(getsockname(r, (struct sockaddr *)&addr, &len));
    while (sendto(w, "x", 1, MSG_DONTWAIT, (struct sockaddr *)&addr, len) == 1)
        ;
    set_timeout(w, SO_SNDTIMEO, 30);
    SAY(sendto(w, "y", 1, 0, (struct sockaddr *)&addr, len));
    set_timeout(w, SO_SNDTIMEO, 0);
    if (in_peer(SOON)) {
        act_now();
        recv(r, buf, 10, 0);
        done();
    }
    SAY(sendto(w, "z", 1, 0, (struct sockaddr *)&addr, len));
    say_acted();
}

SCENARIO(oversized_datagram)
{
    int p[2];
    make_pair(UDP, p);
    SAY(send(p[1], buf, 70000, 0));
    make_pair(UNIX_DGRAM, p);
    SAY(send(p[1], buf, sizeof buf, 0));
}

FAMILY(descriptors_are_passed, stream_socket_names)
{
    int p[2], q[2];
    if (stream_sockets[kind] == TCP)
        return;
    make_pair(stream_sockets[kind], p);
    make_pair(PIPE, q);
    union {
        char bytes[CMSG_SPACE(sizeof(int))];
        struct cmsghdr align;
    } control = {.bytes = {0}};
    struct iovec iov = {buf, 300000};
    struct msghdr m = {.msg_iov = &iov,
                       .msg_iovlen = 1,
                       .msg_control = control.bytes,
                       .msg_controllen = sizeof control.bytes};
    if (in_peer(SOON)) {
        struct cmsghdr *c = CMSG_FIRSTHDR(&m);
        *c = (struct cmsghdr){
            .cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS, .cmsg_len = CMSG_LEN(sizeof(int))};
        memcpy(CMSG_DATA(c), &q[1], sizeof(int));
        shared[1] = (int)sendmsg(p[1], &m, 0);
        done();
    }
    long n = SAY(recvmsg(p[0], &m, 0) > 0);
    (void)n;
    struct cmsghdr *c = CMSG_FIRSTHDR(&m);
    say("control %d", c && c->cmsg_type == SCM_RIGHTS);
    long total = 0;
    iov.iov_len = 65536;
    for (int i = 0; i < 50 && !shared[1]; i++) {
        struct msghdr more = {.msg_iov = &iov,
                              .msg_iovlen = 1,
                              .msg_control = control.bytes,
                              .msg_controllen = sizeof control.bytes};
        long k = recvmsg(p[0], &more, MSG_DONTWAIT);
        if (k > 0)
            total += k;
        if (k > 0 && more.msg_controllen)
            say("control twice");
        pause_ms(1);
    }
    while (!shared[1])
        pause_ms(1);
    say("sent %d", shared[1]);
}

SCENARIO(waitall_message_brings_descriptor_in_second_piece)
{
    int p[2], q[2];
    make_pair(UNIX_STREAM, p);
    make_pair(PIPE, q);
    union {
        char bytes[CMSG_SPACE(sizeof(int))];
        struct cmsghdr align;
    } control = {.bytes = {0}};
    struct iovec iov = {buf, 10};
    struct msghdr m = {.msg_iov = &iov,
                       .msg_iovlen = 1,
                       .msg_control = control.bytes,
                       .msg_controllen = sizeof control.bytes};
    if (in_peer(SOON)) {
        struct cmsghdr *c = CMSG_FIRSTHDR(&m);
        *c = (struct cmsghdr){
            .cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS, .cmsg_len = CMSG_LEN(sizeof(int))};
        memcpy(CMSG_DATA(c), &q[1], sizeof(int));
        write(p[1], "abc", 3);
        pause_ms(SOON);
        iov.iov_len = 3;
        sendmsg(p[1], &m, 0);
        pause_ms(SOON);
        write(p[1], "ghij", 4);
        pause_ms(100);
        done();
    }
    memset(buf, 0, 16);
    SAY(recvmsg(p[0], &m, MSG_WAITALL));
    say_bytes("data", buf, 10);
    say("control %zu flags %x", m.msg_controllen, m.msg_flags);
}

/* ---- other files --------------------------------------------------------------------------------------- */

SCENARIO(eventfd_counts)
{
    int fd = (int)MUST(eventfd(0, 0));
    uint64_t value = 0, most = UINT64_MAX - 1, one = 1;
    if (in_peer(SOON)) {
        act_now();
        value = 7;
        write(fd, &value, 8);
        done();
    }
    SAY(read(fd, &value, 4));
    SAY(read(fd, &value, 8));
    say_acted();
    say("value %llu", (unsigned long long)value);
    shared[0] = 0;
    /* The peer's write may hold its instant still, and our fd is the same open file. */
    syscall(SYS_wait4, -1, NULL, 0, NULL);
    SAY(write(fd, &most, 8));
    if (in_peer(SOON)) {
        act_now();
        read(fd, &value, 8);
        done();
    }
    SAY(write(fd, &one, 8));
    say_acted();
    SAY(read(fd, &value, 8));
    say("value %llu", (unsigned long long)value);
    value = UINT64_MAX;
    SAY(write(fd, &value, 8));
}

SCENARIO(eventfd_nearly_full_waits)
{
    int fd = (int)MUST(eventfd(0, 0));
    uint64_t value = UINT64_MAX - 10;
    SAY(write(fd, &value, 8));
    if (in_peer(2 * SOON)) {
        act_now();
        read(fd, &value, 8);
        done();
    }
    value = 100; /* poll says writable, but 100 do not fit */
    SAY(write(fd, &value, 8));
    say_acted();
}

SCENARIO(regular_file)
{
    FILE *f = tmpfile();
    int fd = fileno(f);
    SAY(write(fd, "hello", 5));
    SAY(lseek(fd, 1, SEEK_SET));
    SAY(read(fd, buf, 10));
    SAY(read(fd, buf, 10));
    struct iovec iov[2] = {{"ab", 2}, {"cd", 2}};
    SAY(writev(fd, iov, 2));
    SAY(lseek(fd, 0, SEEK_CUR));
    SAY(fclose(f));
    SAY(write(fd, "x", 1));
}

SCENARIO(devices)
{
    int null = (int)MUST(open("/dev/null", O_RDWR)), zero = (int)MUST(open("/dev/zero", O_RDWR));
    int full = (int)MUST(open("/dev/full", O_RDWR)),
        rnd = (int)MUST(open("/dev/urandom", O_RDONLY));
    SAY(read(null, buf, 10));
    SAY(write(null, buf, 100000));
    SAY(read(zero, buf, 100000));
    SAY(write(zero, buf, 10));
    SAY(write(full, buf, 10));
    SAY(read(rnd, buf, 100));
    struct iovec iov[2] = {{buf, 10}, {buf, 20}};
    SAY(readv(zero, iov, 2));
    SAY(writev(null, iov, 2));
}

SCENARIO(memfd_and_directory)
{
    int fd = (int)MUST(memfd_create("m", 0)), dir = (int)MUST(open("/", O_RDONLY));
    SAY(write(fd, "abc", 3));
    SAY(pread(fd, buf, 10, 0));
    SAY(lseek(fd, 0, SEEK_SET));
    SAY(read(fd, buf, 10));
    SAY(read(dir, buf, 10));
}

SCENARIO(pipe_writes_up_to_pipe_buf_are_whole)
{
    int p[2];
    make_pair(PIPE, p);
    fill(p[1]);
    if (in_peer(SOON)) {
        close(p[1]);
        pause_ms(SOON);
        drain(p[0], 100); /* not a whole page: no room yet */
        pause_ms(SOON);
        act_now();
        drain(p[0], 8192);
        pause_ms(200);
        done();
    }
    SAY(write(p[1], buf, 4096));
    say_acted();
}

SCENARIO(two_readers_of_one_pipe_are_both_served)
{
    int p[2];
    make_pair(PIPE, p);
    for (int i = 0; i < 2; i++)
        if (in_peer(0)) {
            char c;
            if (read(p[0], &c, 1) == 1)
                __atomic_fetch_add(&shared[1], 1, __ATOMIC_SEQ_CST);
            done();
        }
    pause_ms(SOON);
    write(p[1], "a", 1);
    pause_ms(SOON);
    write(p[1], "b", 1);
    while (shared[1] < 2)
        pause_ms(1);
    say("both");
}

SCENARIO(unix_connection_refused_on_closed_peer)
{
    int p[2];
    make_pair(UNIX_DGRAM, p);
    close(p[0]);
    SAY(send(p[1], "x", 1, MSG_NOSIGNAL));
    make_pair(UDP, p);
    close(p[0]);
    SAY(send(p[1], "x", 1, 0));
    SAY(recv(p[1], buf, 1, 0)); /* ECONNREFUSED from the kernel's ICMP */
}

SCENARIO(half_close)
{
    int p[2];
    make_pair(TCP, p);
    MUST(shutdown(p[1], SHUT_WR));
    SAY(recv(p[0], buf, 10, 0));
    SAY(send(p[0], "still", 5, 0));
    SAY(recv(p[1], buf, 10, 0));
    SAY(send(p[1], "x", 1, MSG_NOSIGNAL));
    MUST(shutdown(p[1], SHUT_RD));
    SAY(recv(p[1], buf, 10, 0));
}

/* More than PIPE_BUF, which goes in one piece, and more than fits. */
FAMILY(nonblocking_write_takes_what_fits, pair_names)
{
    static char huge[200000];
    int p[2];
    make_pair(kind, p);
    MUST(fcntl(p[1], F_SETFL, O_WRONLY | O_NONBLOCK));
    SAY(write(p[1], huge, 5000));
    struct iovec iov[2] = {{huge, 3000}, {huge, 4000}};
    SAY(writev(p[1], iov, 2));
    long r = write(p[1], huge, sizeof huge);
    if (kind == PIPE || kind == FIFO)
        say_result("write", r, UNTOUCHED);
}
