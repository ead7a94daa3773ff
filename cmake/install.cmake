include(GNUInstallDirs)
include(CMakePackageConfigHelpers)

get_property(layers GLOBAL PROPERTY BRAID_LAYERS)
foreach(layer ${layers})
  string(REGEX REPLACE "^braid_" "" name ${layer})
  set_target_properties(${layer} PROPERTIES EXPORT_NAME ${name})
endforeach()
install(TARGETS braid ${layers} EXPORT braid-targets
  ARCHIVE DESTINATION ${CMAKE_INSTALL_LIBDIR}
  FILE_SET HEADERS DESTINATION ${CMAKE_INSTALL_INCLUDEDIR}
  FILE_SET unsourced DESTINATION ${CMAKE_INSTALL_INCLUDEDIR})
install(FILES ${PROJECT_BINARY_DIR}/include/braid/core/build_config.h
  DESTINATION ${CMAKE_INSTALL_INCLUDEDIR}/braid/core)
install(EXPORT braid-targets NAMESPACE braid:: DESTINATION ${CMAKE_INSTALL_LIBDIR}/cmake/braid)
if(TARGET braid_tool)
  install(TARGETS braid_tool RUNTIME DESTINATION ${CMAKE_INSTALL_BINDIR})
endif()

configure_package_config_file(cmake/braid-config.cmake.in
  ${PROJECT_BINARY_DIR}/braid-config.cmake
  INSTALL_DESTINATION ${CMAKE_INSTALL_LIBDIR}/cmake/braid)
write_basic_package_version_file(${PROJECT_BINARY_DIR}/braid-config-version.cmake
  COMPATIBILITY SameMinorVersion)
install(FILES ${PROJECT_BINARY_DIR}/braid-config.cmake
  ${PROJECT_BINARY_DIR}/braid-config-version.cmake
  DESTINATION ${CMAKE_INSTALL_LIBDIR}/cmake/braid)
