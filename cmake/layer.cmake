# One folder is one layer is one library. `DEPENDS` names the layers below and the packages it uses.
# Sources are found by name: *.cpp (and *.cu with BRAID_CUDA) but for tests and benchmarks.
set(BRAID_WARNINGS -Wall -Wextra -Wpedantic -Wshadow -Wno-missing-field-initializers)

function(braid_compile_options target)
  if(BRAID_DEV)
    target_compile_options(${target} PRIVATE
      $<$<COMPILE_LANGUAGE:CXX>:${BRAID_WARNINGS};-Werror>
      $<$<COMPILE_LANGUAGE:CUDA>:SHELL:-Werror all-warnings>)
  endif()
  # Fuzzing is about the readers of files: instrumented kernels would take many times as long to
  # compile, and most of the edges the fuzzer counts would be theirs.
  set(kernels FALSE)
  if(BRAID_FUZZ AND target MATCHES "^braid_(simd|ops)$")
    set(kernels TRUE)
  endif()
  if(BRAID_SANITIZE AND NOT kernels)
    target_compile_options(${target} PRIVATE
      -fsanitize=${BRAID_SANITIZE} -fno-omit-frame-pointer -fno-sanitize-recover=all)
    target_link_options(${target} PRIVATE -fsanitize=${BRAID_SANITIZE})
  endif()
  # Every kernel writes its sums in a defined order; the compiler must not change which operations
  # are fused behind our back, or forms that agree by construction would differ in the last bit.
  target_compile_options(${target} PRIVATE $<$<COMPILE_LANGUAGE:CXX>:-ffp-contract=off>)
  # A precompiled header out of ccache is older or younger than when it was made.
  target_compile_options(${target} PRIVATE
    $<$<COMPILE_LANG_AND_ID:CXX,Clang>:SHELL:-Xclang -fno-pch-timestamp>)
  # Dims and dtypes are shared with the CPU: their constexpr members serve kernels too.
  target_compile_options(${target} PRIVATE
    $<$<COMPILE_LANGUAGE:CUDA>:--expt-relaxed-constexpr>)
endfunction()

function(braid_layer name)
  cmake_parse_arguments(ARG "" "" "DEPENDS;PRIVATE_DEPENDS" ${ARGN})
  file(GLOB_RECURSE sources CONFIGURE_DEPENDS *.cpp)
  file(GLOB_RECURSE headers CONFIGURE_DEPENDS *.h)
  if(BRAID_CUDA)
    file(GLOB_RECURSE cuda_sources CONFIGURE_DEPENDS *.cu)
  endif()
  list(FILTER sources EXCLUDE REGEX "(/|_)test\\.cpp$")
  # Highway's per-target headers are included once for each instruction set and compile only there.
  list(FILTER headers EXCLUDE REGEX "-inl\\.h$")
  add_library(braid_${name} STATIC ${sources} ${cuda_sources})
  add_library(braid::${name} ALIAS braid_${name})
  # A header whose source begins with it (test `layering`) is compiled alone there already, if with the
  # packages of its own layer at hand; the others are by `all_verify_interface_header_sets`.
  set(unsourced)
  foreach(header ${headers})
    cmake_path(REPLACE_EXTENSION header LAST_ONLY .cpp OUTPUT_VARIABLE source)
    if(NOT source IN_LIST sources)
      list(APPEND unsourced ${header})
    endif()
  endforeach()
  list(REMOVE_ITEM headers ${unsourced} "")
  target_sources(braid_${name} PUBLIC
    FILE_SET HEADERS BASE_DIRS ${PROJECT_SOURCE_DIR} FILES ${headers}
    FILE_SET unsourced TYPE HEADERS BASE_DIRS ${PROJECT_SOURCE_DIR} FILES ${unsourced})
  set_target_properties(braid_${name} PROPERTIES VERIFY_INTERFACE_HEADER_SETS ON
    INTERFACE_HEADER_SETS_TO_VERIFY unsourced)
  target_link_libraries(braid_${name} PUBLIC ${ARG_DEPENDS} PRIVATE ${ARG_PRIVATE_DEPENDS})
  braid_compile_options(braid_${name})
  set_property(GLOBAL APPEND PROPERTY BRAID_LAYERS braid_${name})
endfunction()

# What every test reads, compiled once for all of them. A build with CMAKE_DISABLE_PRECOMPILE_HEADERS
# (preset `dev`) shows includes that a test lacks, and is the one to lint.
function(braid_test_headers)
  if(TARGET braid_test_headers)
    return()
  endif()
  file(CONFIGURE OUTPUT ${PROJECT_BINARY_DIR}/test_headers.cpp CONTENT "")
  add_executable(braid_test_headers ${PROJECT_BINARY_DIR}/test_headers.cpp)
  target_link_libraries(braid_test_headers PRIVATE braid::core GTest::gtest_main)
  braid_compile_options(braid_test_headers)
  target_precompile_headers(braid_test_headers PRIVATE <gtest/gtest.h> <fmt/format.h> <algorithm> <cmath> <functional>
    <memory> <random> <span> <string> <vector>)
endfunction()

# A GoogleTest binary. Every test gets the label `fast` or `slow`.
function(braid_test name)
  cmake_parse_arguments(ARG "" "LABEL;TIMEOUT" "SOURCES;DEPENDS" ${ARGN})
  if(NOT BRAID_TESTS)
    return()
  endif()
  if(NOT ARG_LABEL)
    set(ARG_LABEL fast)
  endif()
  if(NOT ARG_TIMEOUT)
    set(ARG_TIMEOUT 300)
  endif()
  add_executable(${name} ${ARG_SOURCES})
  target_link_libraries(${name} PRIVATE ${ARG_DEPENDS} GTest::gtest_main)
  target_include_directories(${name} PRIVATE ${PROJECT_SOURCE_DIR})
  target_compile_definitions(${name} PRIVATE BRAID_SOURCE_DIR="${PROJECT_SOURCE_DIR}")
  braid_compile_options(${name})
  braid_test_headers()
  target_precompile_headers(${name} REUSE_FROM braid_test_headers)
  add_test(NAME ${name} COMMAND ${name})
  set_tests_properties(${name} PROPERTIES LABELS ${ARG_LABEL} TIMEOUT ${ARG_TIMEOUT})
endfunction()
