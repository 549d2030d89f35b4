/* The main program of an interpreter whose CPython comes from elsewhere: `make` adds this library to an
 * executable that has a whole free-threaded CPython linked in, and exports its API, but does something else.
 * Takes CPython's command line: the flags, then FILE, -c CODE or -m MODULE. EXECUTABLE, HOME, STDLIB, MODULES and
 * SITE are paths that `make` defines. */
#define _GNU_SOURCE
#define Py_GIL_DISABLED 1
#include <Python.h>
#include <dlfcn.h>
#include <stdio.h>

static PyStatus
configure(PyConfig *config, int argc, char **argv)
{
    static const wchar_t *const paths[] = {STDLIB, MODULES, SITE};
    const char *gil = getenv("PYTHON_GIL"); /* obeyed even where -I ignores the environment: the tests' children */
    PyStatus status = PyConfig_SetString(config, &config->home, HOME);
    if (gil != NULL) {
        config->enable_gil = *gil == '1';
    }
    config->site_import = 0;
    config->module_search_paths_set = 1;
    for (size_t i = 0; i < Py_ARRAY_LENGTH(paths) && !PyStatus_Exception(status); i++) {
        status = PyWideStringList_Append(&config->module_search_paths, paths[i]);
    }
    if (!PyStatus_Exception(status)) {
        status = PyConfig_SetString(config, &config->stdlib_dir, STDLIB);
    }
    if (!PyStatus_Exception(status)) {
        status = PyConfig_SetString(config, &config->executable, EXECUTABLE);
    }
    return PyStatus_Exception(status) ? status : PyConfig_SetBytesArgv(config, argc, argv);
}

/* Unless -P or -I forbids it, modules are found beside the file that is run. */
static PyStatus
add_directory_of_file(PyConfig *config)
{
    wchar_t directory[4096] = L".";
    const wchar_t *file = config->run_filename, *slash = file == NULL ? NULL : wcsrchr(file, L'/');
    if (file == NULL || config->safe_path || (slash != NULL && (size_t)(slash - file) >= Py_ARRAY_LENGTH(directory))) {
        return PyStatus_Ok();
    }
    if (slash != NULL) {
        wmemcpy(directory, file, (size_t)(slash - file));
        directory[slash - file] = 0;
    }
    return PyWideStringList_Insert(&config->module_search_paths, 0, directory);
}

static int
run_module(const wchar_t *name)
{
    PyObject *runpy = PyImport_ImportModule("runpy");
    PyObject *result =
        runpy == NULL ? NULL
                      : PyObject_CallMethod(runpy, "_run_module_as_main", "u#i", name, (Py_ssize_t)wcslen(name), 1);
    if (result == NULL) {
        PyErr_Print(); /* exits with its status if it is a SystemExit */
    }
    Py_XDECREF(runpy);
    Py_XDECREF(result);
    return result == NULL;
}

static int
run(const PyConfig *config)
{
    char *text;
    int failed;
    if (config->run_module != NULL) {
        return run_module(config->run_module);
    }
    text = Py_EncodeLocale(config->run_command != NULL ? config->run_command : config->run_filename, NULL);
    if (text == NULL) {
        return 1;
    }
    if (config->run_command != NULL) {
        failed = PyRun_SimpleString(text) != 0;
    } else {
        FILE *file = fopen(text, "rb");
        failed = file == NULL || PyRun_SimpleFileEx(file, text, 1) != 0;
    }
    PyMem_Free(text);
    return failed;
}

static int
python_main(int argc, char **argv, char **Py_UNUSED(environment))
{
    PyConfig config;
    PyStatus status;
    int failed;
    PyConfig_InitPythonConfig(&config);
    status = configure(&config, argc, argv);
    if (!PyStatus_Exception(status)) {
        status = PyConfig_Read(&config); /* the command line, taken apart */
    }
    if (!PyStatus_Exception(status)) {
        status = add_directory_of_file(&config);
    }
    if (!PyStatus_Exception(status)) {
        status = Py_InitializeFromConfig(&config);
    }
    if (PyStatus_Exception(status)) {
        fprintf(stderr, "%s\n", status.err_msg == NULL ? "cannot start" : status.err_msg);
        return PyStatus_IsExit(status) ? status.exitcode : 1;
    }
    if (config.run_module == NULL && config.run_command == NULL && config.run_filename == NULL) {
        fprintf(stderr, "FILE, -c CODE or -m MODULE\n");
        return 2;
    }
    failed = run(&config);
    PyConfig_Clear(&config);
    return Py_FinalizeEx() < 0 || failed;
}

typedef int (*main_function)(int, char **, char **);
typedef int (*start_function)(main_function, int, char **, void (*)(void), void (*)(void), void (*)(void), void *);

int
__libc_start_main(main_function main, int argc, char **argv, void (*init)(void), void (*fini)(void),
                  void (*rtld_fini)(void), void *stack_end)
{
    (void)main;
    return ((start_function)dlsym(RTLD_NEXT, "__libc_start_main"))(python_main, argc, argv, init, fini, rtld_fini,
                                                                   stack_end);
}
