/* python.exe for a Windows CPython that came without one: the DLL has the interpreter. */
#include <wchar.h>

__declspec(dllimport) int Py_Main(int argc, wchar_t **argv);

int
wmain(int argc, wchar_t **argv)
{
    return Py_Main(argc, argv);
}
