# Fails where a kernel's object holds a weak symbol, for the reason that isa.h gives.
if(NOT NM)
  return()
endif()
execute_process(COMMAND ${NM} -C ${OBJECTS} OUTPUT_VARIABLE symbols COMMAND_ERROR_IS_FATAL ANY)
string(REGEX MATCHALL "[^\n]* [WVu] [^\n]*" weak "${symbols}")
list(FILTER weak EXCLUDE REGEX "DW\\.ref\\.")  # addresses, not code
if(weak)
  list(JOIN weak "\n" weak)
  message(FATAL_ERROR "kernels compiled for one instruction set share code with others:\n${weak}")
endif()
