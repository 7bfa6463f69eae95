// gRPC C++, with TLS (server argument: a folder with cert.pem and key.pem) or plain (no argument).
//
// Chosen for small machines: asynchronous server with one completion queue and one thread; calls in flight from one completion queue polled by one
// thread; single calls and streams through the blocking stubs, whose thread polls for itself.
// Every call has a deadline; no call carries a token.
#include <grpcpp/grpcpp.h>

#include <chrono>
#include <cstdio>
#include <fstream>
#include <memory>
#include <sstream>
#include <string>
#include <thread>
#include <vector>

#include "bench.grpc.pb.h"
#include "bench.h"

using cauce::bench::v1::Bench;
using cauce::bench::v1::Payload;
using cauce::bench::v1::Wanted;

namespace
{

constexpr int kCallSeconds = 30;
constexpr int kStreamSeconds = 600;
constexpr int kServerThreads = 1;
constexpr int kMaxMessage = 8 << 20;

std::string read_file(const std::string &path)
{
    std::ifstream in(path);
    std::stringstream text;
    text << in.rdbuf();
    return text.str();
}

// ---------------------------------------------------------------- server

struct Event { // what a completion queue's tag points at
    virtual ~Event() = default;
    virtual void proceed(bool ok) = 0;
};

struct Echo final : Event {
    Bench::AsyncService *service;
    grpc::ServerCompletionQueue *cq;
    grpc::ServerContext context;
    Payload request;
    grpc::ServerAsyncResponseWriter<Payload> writer{&context};
    bool answered = false;

    Echo(Bench::AsyncService *s, grpc::ServerCompletionQueue *q) : service(s), cq(q)
    {
        service->RequestEcho(&context, &request, &writer, cq, cq, this);
    }
    void proceed(bool ok) override
    {
        if (!ok || answered) {
            delete this;
            return;
        }
        new Echo(service, cq);
        answered = true;
        writer.Finish(request, grpc::Status::OK, this);
    }
};

struct Download final : Event {
    Bench::AsyncService *service;
    grpc::ServerCompletionQueue *cq;
    grpc::ServerContext context;
    Wanted request;
    Payload message;
    grpc::ServerAsyncWriter<Payload> writer{&context};
    uint64_t left = 0;
    enum { kNew, kWriting, kDone } state = kNew;

    Download(Bench::AsyncService *s, grpc::ServerCompletionQueue *q) : service(s), cq(q)
    {
        service->RequestDownload(&context, &request, &writer, cq, cq, this);
    }
    void finish(const grpc::Status &status)
    {
        state = kDone;
        writer.Finish(status, this);
    }
    void proceed(bool ok) override
    {
        if (state == kDone || (state == kNew && !ok)) {
            delete this;
            return;
        }
        if (!ok) {
            finish(grpc::Status::CANCELLED);
            return;
        }
        if (state == kNew) {
            new Download(service, cq);
            state = kWriting;
            left = request.total_bytes();
            message.set_data(bench_payload(request.message_bytes()), request.message_bytes());
        }
        if (left == 0) {
            finish(grpc::Status::OK);
            return;
        }
        if (left < message.data().size())
            message.mutable_data()->resize(left);
        left -= message.data().size();
        writer.Write(message, this);
    }
};

void serve_queue(grpc::ServerCompletionQueue *cq)
{
    void *tag;
    bool ok;
    while (cq->Next(&tag, &ok))
        static_cast<Event *>(tag)->proceed(ok);
}

int serve(const char *argument)
{
    Bench::AsyncService service;
    grpc::ServerBuilder builder;
    int port = 0;
    std::string dir = argument;
    std::shared_ptr<grpc::ServerCredentials> credentials = grpc::InsecureServerCredentials();
    if (!dir.empty()) {
        grpc::SslServerCredentialsOptions tls;
        tls.pem_key_cert_pairs.push_back(
            {read_file(dir + "/key.pem"), read_file(dir + "/cert.pem")});
        credentials = grpc::SslServerCredentials(tls);
    }
    builder.AddListeningPort("127.0.0.1:0", credentials, &port);
    builder.RegisterService(&service);
    builder.SetMaxReceiveMessageSize(kMaxMessage);
    std::vector<std::unique_ptr<grpc::ServerCompletionQueue>> queues;
    for (int i = 0; i < kServerThreads; i++)
        queues.push_back(builder.AddCompletionQueue());
    std::unique_ptr<grpc::Server> server = builder.BuildAndStart();
    if (!server || port == 0) {
        fprintf(stderr, "cannot listen\n");
        return 1;
    }
    std::vector<std::thread> threads;
    for (auto &q : queues) {
        for (int i = 0; i < 64; i++)
            new Echo(&service, q.get());
        for (int i = 0; i < 4; i++)
            new Download(&service, q.get());
        threads.emplace_back(serve_queue, q.get());
    }
    bench_ready(("127.0.0.1:" + std::to_string(port) + "," + dir).c_str());
    bench_wait_stdin();
    server->Shutdown(std::chrono::system_clock::now());
    for (auto &q : queues)
        q->Shutdown();
    for (auto &t : threads)
        t.join();
    return 0;
}

// ---------------------------------------------------------------- client

struct Conn {
    std::shared_ptr<grpc::Channel> channel;
    std::unique_ptr<Bench::Stub> stub;
};

struct Stream {
    grpc::ClientContext context;
    std::unique_ptr<grpc::ClientReader<Payload>> reader;
    Payload message;
};

void set_deadline(grpc::ClientContext *context, int seconds)
{
    context->set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(seconds));
}

void *connect(const char *address, bool)
{
    std::string text = address;
    size_t comma = text.find(',');
    std::string dir = comma == std::string::npos ? "" : text.substr(comma + 1);
    std::shared_ptr<grpc::ChannelCredentials> credentials = grpc::InsecureChannelCredentials();
    if (!dir.empty()) {
        grpc::SslCredentialsOptions tls;
        tls.pem_root_certs = read_file(dir + "/cert.pem");
        credentials = grpc::SslCredentials(tls);
    }
    grpc::ChannelArguments args;
    args.SetMaxReceiveMessageSize(kMaxMessage);
    args.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1); // a connection of its own
    auto conn = std::make_unique<Conn>();
    conn->channel = grpc::CreateCustomChannel(text.substr(0, comma), credentials, args);
    if (!conn->channel->WaitForConnected(std::chrono::system_clock::now() +
                                         std::chrono::seconds(kCallSeconds))) {
        fprintf(stderr, "no connection to %s\n", address);
        return nullptr;
    }
    conn->stub = Bench::NewStub(conn->channel);
    return conn.release();
}

void disconnect(void *conn)
{
    delete static_cast<Conn *>(conn);
}

bool echo(void *conn, size_t size)
{
    grpc::ClientContext context;
    set_deadline(&context, kCallSeconds);
    Payload request, reply;
    request.set_data(bench_payload(size), size);
    grpc::Status status = static_cast<Conn *>(conn)->stub->Echo(&context, request, &reply);
    return status.ok() && reply.data().size() == size;
}

struct Call { // one in flight
    std::unique_ptr<grpc::ClientContext> context;
    std::unique_ptr<grpc::ClientAsyncResponseReader<Payload>> reader;
    Payload request, reply;
    grpc::Status status;
    int64_t began_ns = 0;

    void start(Bench::Stub *stub, grpc::CompletionQueue *cq, size_t size)
    {
        began_ns = bench_now_ns();
        context = std::make_unique<grpc::ClientContext>();
        set_deadline(context.get(), kCallSeconds);
        request.set_data(bench_payload(size), size);
        reader = stub->AsyncEcho(context.get(), request, cq);
        reader->Finish(&reply, &status, this);
    }
};

void echo_many(void *conn, size_t size, unsigned in_flight, struct bench_run *r)
{
    Bench::Stub *stub = static_cast<Conn *>(conn)->stub.get();
    grpc::CompletionQueue cq;
    std::vector<Call> calls(in_flight);
    unsigned active = 0;
    for (auto &call : calls) {
        if (!bench_next(r))
            break;
        call.start(stub, &cq, size);
        active++;
    }
    void *tag;
    bool ok;
    while (active && cq.Next(&tag, &ok)) {
        Call *call = static_cast<Call *>(tag);
        bench_done(r, call->began_ns, call->status.ok() && call->reply.data().size() == size);
        if (bench_next(r))
            call->start(stub, &cq, size);
        else
            active--;
    }
    cq.Shutdown();
    while (cq.Next(&tag, &ok)) {
    }
}

void *open(void *conn, size_t message_bytes, uint64_t total_bytes)
{
    auto stream = std::make_unique<Stream>();
    set_deadline(&stream->context, kStreamSeconds);
    Wanted request;
    request.set_total_bytes(total_bytes);
    request.set_message_bytes(static_cast<uint32_t>(message_bytes));
    stream->reader = static_cast<Conn *>(conn)->stub->Download(&stream->context, request);
    return stream.release();
}

int64_t next(void *stream)
{
    auto *s = static_cast<Stream *>(stream);
    if (s->reader->Read(&s->message))
        return static_cast<int64_t>(s->message.data().size());
    return s->reader->Finish().ok() ? 0 : -1;
}

void close(void *stream)
{
    auto *s = static_cast<Stream *>(stream);
    s->context.TryCancel();
    delete s;
}

} // namespace

int main(int argc, char **argv)
{
    bench_system system = {};
    system.serve = serve;
    system.connect = connect;
    system.disconnect = disconnect;
    system.echo = echo;
    system.echo_many = echo_many;
    system.open = open;
    system.next = next;
    system.close = close;
    system.two_at_once = true;
    return bench_main(&system, argc, argv);
}
