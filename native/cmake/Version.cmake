# SPDX-License-Identifier: GPL-2.0-or-later
# UFFDB_VERSION, from the one place that states it, and UFFDB_SOVERSION, which follows from it.
file(
  STRINGS "${CMAKE_CURRENT_LIST_DIR}/../../uffdballoon/__init__.py" _version_line
  REGEX "^__version__ = "
)
string(REGEX MATCH "[0-9]+\\.[0-9]+\\.[0-9]+" UFFDB_VERSION "${_version_line}")
if(NOT UFFDB_VERSION)
  message(FATAL_ERROR "uffdballoon/__init__.py states no version of the form 1.2.3")
endif()
# Before 1.0 a minor version may change the binary interface (docs/library.md).
string(REGEX MATCH "^0\\.[0-9]+|^[0-9]+" UFFDB_SOVERSION "${UFFDB_VERSION}")
