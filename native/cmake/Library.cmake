# SPDX-License-Identifier: GPL-2.0-or-later
# The C library as others use it: shared, with its header and a file for pkg-config.
include(GNUInstallDirs)

add_library(uffdballoon_shared SHARED $<TARGET_OBJECTS:uffdballoon>)
target_link_libraries(uffdballoon_shared PRIVATE Threads::Threads uffdb_options)
target_link_options(uffdballoon_shared PRIVATE LINKER:-Bsymbolic-functions)
set_target_properties(
  uffdballoon_shared
  PROPERTIES
    OUTPUT_NAME uffdballoon
    LINKER_LANGUAGE C
    VERSION ${PROJECT_VERSION}
    SOVERSION ${UFFDB_SOVERSION}
)

# By paths from where it lies itself: what is installed can be moved as a whole.
set(pc_dir ${CMAKE_INSTALL_FULL_LIBDIR}/pkgconfig)
file(RELATIVE_PATH pc_prefix ${pc_dir} ${CMAKE_INSTALL_PREFIX})
file(RELATIVE_PATH pc_include ${CMAKE_INSTALL_PREFIX} ${CMAKE_INSTALL_FULL_INCLUDEDIR})
file(RELATIVE_PATH pc_lib ${CMAKE_INSTALL_PREFIX} ${CMAKE_INSTALL_FULL_LIBDIR})
# A relative path ends with a slash where it leads to a directory above.
string(REGEX REPLACE "/$" "" pc_prefix "${pc_prefix}")
configure_file(uffdballoon.pc.in uffdballoon.pc @ONLY)

install(
  TARGETS uffdballoon_shared
  LIBRARY
    DESTINATION ${CMAKE_INSTALL_LIBDIR}
    COMPONENT library
    NAMELINK_COMPONENT development
)
install(
  FILES include/uffdballoon.h
  DESTINATION ${CMAKE_INSTALL_INCLUDEDIR}
  COMPONENT development
)
install(
  FILES ${CMAKE_CURRENT_BINARY_DIR}/uffdballoon.pc
  DESTINATION ${CMAKE_INSTALL_LIBDIR}/pkgconfig
  COMPONENT development
)
