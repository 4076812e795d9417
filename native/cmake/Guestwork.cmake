# SPDX-License-Identifier: GPL-2.0-or-later
# What runs in the Linux guest: a static program, since there is no other file in that guest.

set(guestwork_dir ${CMAKE_CURRENT_SOURCE_DIR}/native/guestwork)
set(guestwork_program ${CMAKE_CURRENT_BINARY_DIR}/guestwork/guestwork)

include(CheckCSourceCompiles)
set(CMAKE_REQUIRED_LINK_OPTIONS -static)
check_c_source_compiles("int main(void) { return 0; }" UFFDB_STATIC_LIBC)
unset(CMAKE_REQUIRED_LINK_OPTIONS)
if(CMAKE_SYSTEM_PROCESSOR STREQUAL "x86_64" AND UFFDB_STATIC_LIBC)
  file(GLOB guestwork_inputs CONFIGURE_DEPENDS ${guestwork_dir}/*)
  add_custom_command(
    OUTPUT ${guestwork_program}
    COMMAND make -C ${guestwork_dir} OUT=${guestwork_program}
    DEPENDS ${guestwork_inputs}
    COMMENT "Building what runs in the Linux guest"
    VERBATIM
  )
  add_custom_target(guestwork ALL DEPENDS ${guestwork_program})
  install(PROGRAMS ${guestwork_program} DESTINATION uffdballoon/lab COMPONENT python)
else()
  message(
    WARNING
    "What runs in the Linux guest is left out: it needs x86-64 and a static libc. "
    "uffdballoon works without it; its tests on a Linux guest do not."
  )
endif()
