# SPDX-License-Identifier: GPL-2.0-or-later
# The micro-guest: a 32-bit multiboot ELF that the tests and the demo boot under QEMU.
include(CheckSourceCompiles)

set(microguest_dir ${CMAKE_CURRENT_SOURCE_DIR}/native/microguest)
set(microguest_elf ${CMAKE_CURRENT_BINARY_DIR}/microguest/microguest.elf)

set(CMAKE_REQUIRED_FLAGS "-m32 -ffreestanding -fno-pic -fno-stack-protector -nostdlib")
set(CMAKE_TRY_COMPILE_TARGET_TYPE STATIC_LIBRARY)
check_source_compiles(C "int micro(void) { return 32; }" UFFDB_CAN_BUILD_32BIT)
unset(CMAKE_TRY_COMPILE_TARGET_TYPE)
unset(CMAKE_REQUIRED_FLAGS)

if(UFFDB_CAN_BUILD_32BIT AND EXISTS ${microguest_dir}/Makefile)
  file(GLOB microguest_inputs CONFIGURE_DEPENDS ${microguest_dir}/*)
  add_custom_command(
    OUTPUT ${microguest_elf}
    COMMAND make -C ${microguest_dir} OUT=${microguest_elf}
    DEPENDS ${microguest_inputs}
    COMMENT "Building the micro-guest"
    VERBATIM
  )
  add_custom_target(microguest ALL DEPENDS ${microguest_elf})
  install(FILES ${microguest_elf} DESTINATION uffdballoon/lab COMPONENT python)
else()
  message(
    WARNING
    "The micro-guest is left out: this compiler cannot build 32-bit code (-m32). "
    "uffdballoon works without it; its tests and demo on a real QEMU do not."
  )
endif()
