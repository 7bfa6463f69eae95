# The other systems, each where its packages are (compose/deps bench); `bench` is what there is of them.
add_custom_target(bench DEPENDS bench_cauce)
set(bench_d ${CMAKE_CURRENT_LIST_DIR})

function(bench_program name)
    add_executable(${name} EXCLUDE_FROM_ALL ${ARGN})
    target_include_directories(${name} PRIVATE ${bench_d})
    target_link_libraries(${name} PRIVATE Threads::Threads)
    target_compile_definitions(${name} PRIVATE _GNU_SOURCE)
    add_dependencies(bench ${name})
endfunction()

bench_program(bench_tcp ${bench_d}/bench.c ${bench_d}/tcp.c)
bench_program(bench_link ${bench_d}/link.c)

pkg_check_modules(BENCH_ZMQ QUIET IMPORTED_TARGET libzmq)
if(BENCH_ZMQ_FOUND)
    bench_program(bench_zmq ${bench_d}/bench.c ${bench_d}/zmq.c)
    target_link_libraries(bench_zmq PRIVATE PkgConfig::BENCH_ZMQ)
endif()

pkg_check_modules(BENCH_GRPC QUIET IMPORTED_TARGET grpc++ protobuf)
find_program(GRPC_CPP_PLUGIN grpc_cpp_plugin)
include(CheckLanguage)
check_language(CXX)
if(BENCH_GRPC_FOUND AND GRPC_CPP_PLUGIN AND CMAKE_CXX_COMPILER)
    enable_language(CXX)
    set(out ${CMAKE_CURRENT_BINARY_DIR}/grpc)
    file(MAKE_DIRECTORY ${out})
    set(sources ${out}/bench.pb.cc ${out}/bench.grpc.pb.cc ${out}/cauce/options.pb.cc)
    add_custom_command(OUTPUT ${sources}
        COMMAND ${PROTOC} -I ${PROJECT_SOURCE_DIR}/proto -I ${bench_d} -I ${PROTO_INCLUDE}
            --plugin=protoc-gen-grpc=${GRPC_CPP_PLUGIN} --cpp_out=${out} --grpc_out=${out}
            ${bench_d}/bench.proto ${PROJECT_SOURCE_DIR}/proto/cauce/options.proto
        DEPENDS ${bench_d}/bench.proto ${PROJECT_SOURCE_DIR}/proto/cauce/options.proto
        COMMENT "protoc: gRPC C++ for the benchmark" VERBATIM)
    bench_program(bench_grpc ${bench_d}/bench.c ${bench_d}/grpc.cc ${sources})
    target_include_directories(bench_grpc SYSTEM PRIVATE ${out})
    target_link_libraries(bench_grpc PRIVATE PkgConfig::BENCH_GRPC)
    set_target_properties(bench_grpc PROPERTIES CXX_STANDARD 17)
endif()
