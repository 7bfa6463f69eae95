# What every target shares: language, warnings, sanitizers, and the three functions that folders use.
find_package(PkgConfig REQUIRED)
find_package(Threads REQUIRED)

set(CMAKE_C_STANDARD 11)
set(CMAKE_C_EXTENSIONS ON)
set(CMAKE_C_STANDARD_REQUIRED ON)
set(CMAKE_POSITION_INDEPENDENT_CODE ON)
set(CMAKE_EXPORT_COMPILE_COMMANDS ON)
set(CMAKE_RUNTIME_OUTPUT_DIRECTORY ${PROJECT_BINARY_DIR}/bin)
set(CMAKE_LIBRARY_OUTPUT_DIRECTORY ${PROJECT_BINARY_DIR}/lib)
set(CMAKE_C_VISIBILITY_PRESET hidden)

add_library(cauce_flags INTERFACE)
target_include_directories(cauce_flags INTERFACE ${PROJECT_SOURCE_DIR}/lib)
target_compile_definitions(cauce_flags INTERFACE _GNU_SOURCE CAUCE_VERSION="${PROJECT_VERSION}")
target_compile_options(cauce_flags INTERFACE
    -Wall -Wextra -Wpedantic -Wshadow -Wvla -Wstrict-prototypes -Wmissing-prototypes
    -Wpointer-arith -Wwrite-strings -Wcast-qual -Wformat=2 -Wundef -Wimplicit-fallthrough
    -Wdouble-promotion $<$<BOOL:${CAUCE_WERROR}>:-Werror>)
target_link_libraries(cauce_flags INTERFACE Threads::Threads)
if(CAUCE_SANITIZE)
    add_compile_options(-fsanitize=${CAUCE_SANITIZE} -fno-omit-frame-pointer -fno-sanitize-recover=all)
    add_link_options(-fsanitize=${CAUCE_SANITIZE})
endif()

option(CAUCE_FUZZ "Fuzz targets for libFuzzer instead of replaying their corpus; needs clang" OFF)
if(CAUCE_FUZZ)
    add_compile_options(-fsanitize=fuzzer-no-link)
    add_link_options(-fsanitize=fuzzer-no-link)
endif()

# cauce_lib(NAME SOURCES a.c b.c [LIBS base log] [PKG libsodium] [STRICT])
# One static library for one folder. LIBS: other folders of lib/, public. PKG: outside libraries by
# pkg-config name, private, headers as SYSTEM. STRICT: the folder parses outside bytes.
function(cauce_lib name)
    cmake_parse_arguments(A "STRICT" "" "SOURCES;LIBS;PKG" ${ARGN})
    add_library(cauce_${name} STATIC ${A_SOURCES})
    target_link_libraries(cauce_${name} PUBLIC cauce_flags)
    foreach(l ${A_LIBS})
        target_link_libraries(cauce_${name} PUBLIC cauce_${l})
    endforeach()
    cauce_pkgs(cauce_${name} ${A_PKG})
    if(A_STRICT)
        target_compile_options(cauce_${name} PRIVATE -Wconversion -Wsign-conversion)
    endif()
endfunction()

# Link outside libraries, found with pkg-config, to a target.
function(cauce_pkgs target)
    foreach(p ${ARGN})
        string(MAKE_C_IDENTIFIER PKG_${p} id)
        pkg_check_modules(${id} REQUIRED QUIET IMPORTED_TARGET ${p})
        target_link_libraries(${target} PRIVATE PkgConfig::${id})
    endforeach()
endfunction()

# cauce_test(NAME SOURCES a_test.c [LIBS base] [PKG ...] [LABELS integration] [TIMEOUT 180])
# A cmocka program that CTest runs. It is told where the test data are and where programs were built.
function(cauce_test name)
    cmake_parse_arguments(A "" "TIMEOUT" "SOURCES;LIBS;PKG;LABELS" ${ARGN})
    if(NOT CAUCE_TESTS)
        add_executable(${name} EXCLUDE_FROM_ALL ${A_SOURCES}) # known, never built
        return()
    endif()
    add_executable(${name} ${A_SOURCES})
    target_link_libraries(${name} PRIVATE cauce_flags)
    foreach(l ${A_LIBS})
        target_link_libraries(${name} PRIVATE cauce_${l})
    endforeach()
    cauce_pkgs(${name} cmocka ${A_PKG})
    target_include_directories(${name} PRIVATE ${PROJECT_SOURCE_DIR}/tests)
    add_test(NAME ${name} COMMAND ${name})
    if(NOT A_TIMEOUT)
        set(A_TIMEOUT 180) # of a test that hangs: a slow disk is no failure
    endif()
    if(NOT A_LABELS)
        set(A_LABELS unit)
    endif()
    set_tests_properties(${name} PROPERTIES TIMEOUT ${A_TIMEOUT} LABELS "${A_LABELS}"
        ENVIRONMENT "CAUCE_SOURCE_DIR=${PROJECT_SOURCE_DIR};CAUCE_BIN_DIR=${PROJECT_BINARY_DIR}/bin")
endfunction()
