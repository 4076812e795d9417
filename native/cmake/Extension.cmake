# SPDX-License-Identifier: GPL-2.0-or-later
# uffdb_extension(): an extension module of cffi's, one binary for CPython 3.11 and later.

# CMake learned of the stable ABI component in 3.26; Debian 12 has 3.25. The module is put
# together here by hand, from the headers alone, so that both do the same.
find_package(Python 3.11 REQUIRED COMPONENTS Interpreter Development.Module)

execute_process(
  COMMAND ${Python_EXECUTABLE} -c "import cffi; print(cffi.__version__)"
  OUTPUT_VARIABLE cffi_version
  OUTPUT_STRIP_TRAILING_WHITESPACE
  ERROR_QUIET
)
if(NOT cffi_version OR cffi_version VERSION_LESS 2.1)
  message(
    FATAL_ERROR
    "cffi 2.1 or later is needed to generate the binding (its cffi.gen_src is new there), but "
    "${Python_EXECUTABLE} has cffi '${cffi_version}'. Run: ${Python_EXECUTABLE} -m pip install 'cffi>=2.1'"
  )
endif()

# uffdb_extension(PACKAGE NAME HEADER LIBRARY): bind what HEADER declares and LIBRARY has.
function(uffdb_extension package name header library)
  string(REPLACE "." "/" directory ${package})
  set(generator ${PROJECT_SOURCE_DIR}/tools/binding.py)
  set(cdef ${CMAKE_CURRENT_BINARY_DIR}/${name}_cdef.h)
  set(prelude ${CMAKE_CURRENT_BINARY_DIR}/${name}_prelude.h)
  set(source ${CMAKE_CURRENT_BINARY_DIR}/${name}.c)
  set(stub ${CMAKE_CURRENT_BINARY_DIR}/${name}.pyi)
  cmake_path(GET header FILENAME included)
  file(CONFIGURE OUTPUT ${prelude} CONTENT "#include \"@included@\"\n" @ONLY)
  add_custom_command(
    OUTPUT ${source} ${stub}
    COMMAND ${Python_EXECUTABLE} ${generator} ${header} --cdef ${cdef} --stub ${stub}
    COMMAND
      ${Python_EXECUTABLE} -m cffi.gen_src read-sources ${package}.${name} ${cdef} ${prelude} ${source}
    BYPRODUCTS ${cdef}
    DEPENDS ${generator} ${header} ${prelude}
    COMMENT "Generating the binding of ${included}"
    VERBATIM
  )

  add_library(${name} MODULE ${source})
  target_compile_definitions(${name} PRIVATE Py_LIMITED_API=0x030B0000)
  target_include_directories(${name} SYSTEM PRIVATE ${Python_INCLUDE_DIRS})
  target_link_libraries(${name} PRIVATE ${library} uffdb_options)
  target_link_options(${name} PRIVATE LINKER:--exclude-libs,ALL) # it exports its init alone
  # What cffi generates is not ours to keep free of unused names.
  target_compile_options(
    ${name} PRIVATE -Wno-unused-function -Wno-unused-parameter -Wno-missing-field-initializers
  )
  set_target_properties(
    ${name} PROPERTIES PREFIX "" SUFFIX ".abi3.so" C_VISIBILITY_PRESET hidden
  )
  install(TARGETS ${name} LIBRARY DESTINATION ${directory} COMPONENT python)
  install(FILES ${stub} DESTINATION ${directory} COMPONENT python)
endfunction()
