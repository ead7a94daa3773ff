set(work ${BUILD}/install-test)
file(REMOVE_RECURSE ${work})
function(step)
  execute_process(COMMAND ${ARGV} RESULT_VARIABLE result OUTPUT_VARIABLE text ERROR_VARIABLE text)
  if(NOT result EQUAL 0)
    message(FATAL_ERROR "${ARGV}: ${result}\n${text}")
  endif()
  set(output "${text}" PARENT_SCOPE)
endfunction()

step(${CMAKE_COMMAND} --install ${BUILD} --prefix ${work}/prefix)
step(${CMAKE_COMMAND} -S ${SOURCE}/tests/install/consumer -B ${work}/consumer -G ${GENERATOR}
  -DCMAKE_PREFIX_PATH=${work}/prefix -DCMAKE_CXX_COMPILER=${CXX})
step(${CMAKE_COMMAND} --build ${work}/consumer)
step(${work}/consumer/consumer)
set(ran "${output}")
# As a subdirectory the targets have the same names; configuring shows that they resolve.
step(${CMAKE_COMMAND} -S ${SOURCE}/tests/install/consumer -B ${work}/subdirectory -G ${GENERATOR}
  -DBRAID_SUBDIRECTORY=${SOURCE} -DCMAKE_CXX_COMPILER=${CXX})
set(output "${ran}")
if(NOT output MATCHES "parameters: [0-9]+")
  message(FATAL_ERROR "the consumer printed: ${output}")
endif()
