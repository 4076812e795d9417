# SPDX-License-Identifier: GPL-2.0-or-later
# The micro-guest: a multiboot ELF that the tests and the demo boot under QEMU.

set(microguest_dir ${CMAKE_CURRENT_SOURCE_DIR}/native/microguest)
set(microguest_elf ${CMAKE_CURRENT_BINARY_DIR}/microguest/microguest.elf)

# It is x86 code in a 32-bit ELF file, the only one that QEMU takes for a multiboot image.
execute_process(
  COMMAND ${CMAKE_OBJCOPY} --info
  OUTPUT_VARIABLE objcopy_formats
  ERROR_QUIET
)
if(CMAKE_SYSTEM_PROCESSOR STREQUAL "x86_64" AND objcopy_formats MATCHES "elf32-i386")
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
    "The micro-guest is left out: these tools cannot make an elf32-i386 file of x86-64 code. "
    "uffdballoon works without it; its tests and demo on a real QEMU do not."
  )
endif()
