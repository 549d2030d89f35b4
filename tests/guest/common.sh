# shellcheck shell=bash
# What the beds beside this file share: finding the tools, and making the parts of a guest.
#
# A guest boots from an initramfs of several cpio archives laid end to end (the kernel unpacks them in order), so that
# what seldom changes is made once: the kernel, the interpreter and the tests' dependencies stay in the cache, and the
# project is packed anew every time.

set -eEuo pipefail

GUEST_SOURCE=$(dirname "$(realpath "${BASH_SOURCE[0]}")")
CHECKOUT=$(realpath "$GUEST_SOURCE/../..")
CACHE=${HVSOCK_GUEST_DIR:-${XDG_CACHE_HOME:-$HOME/.cache}/hvsock/guest}

EXIT_BED_FAILED=70  # the guest died without an exit status
EXIT_MISSING=77     # something must be installed first
EXIT_TIMEOUT=124    # as timeout(1) has it

say() { printf '%s: %s\n' "${0##*/}" "$*" >&2; }

fail() { # fail STATUS SENTENCE
    local status=$1
    shift
    say "$@"
    exit "$status"
}

need() { # need FILE-OR-COMMAND PACKAGE
    command -v "$1" >/dev/null 2>&1 || [ -e "$1" ] ||
        fail $EXIT_MISSING "$1 is missing; apt-get install $2"
}

# shellcheck disable=SC2034 # the beds read them
parse_options() { # parse_options SECONDS ARGUMENT...: sets VERSION, LIMIT, and REST, the arguments it does not know
    VERSION=3.11
    LIMIT=$1
    REST=()
    shift
    while [ $# -gt 0 ]; do
        case $1 in
            --python=*) VERSION=${1#*=} && shift ;;
            --timeout=*) LIMIT=${1#*=} && shift ;;
            --python | --timeout)
                [ $# -gt 1 ] || fail 2 "$1 takes a value"
                set -- "$1=$2" "${@:3}"
                ;;
            --help)
                sed -n '2,/^$/s/^# \{0,1\}//p' "$0"
                exit
                ;;
            *) REST+=("$1") && shift ;;
        esac
    done
}

begin() { # begin: check the tools, and make WORK, a directory that goes when the script ends, as does the guest
    [ "$(uname -sm)" = "Linux x86_64" ] || fail $EXIT_MISSING "the guests run on Linux x86_64 only"
    need qemu-system-x86_64 qemu-system-x86
    need /bin/busybox busybox-static
    need cpio cpio
    need xz xz-utils
    need flock util-linux
    if ldd /bin/busybox >/dev/null 2>&1; then
        fail $EXIT_MISSING "/bin/busybox is linked dynamically; apt-get install busybox-static"
    fi
    mkdir -p "$CACHE"
    WORK=$(mktemp -d "${TMPDIR:-/tmp}/hvsock-guest.XXXXXX")
    QEMU=
    trap finish EXIT
    trap 'exit 130' INT
    trap 'exit 143' TERM
    trap 'say "line $LINENO of ${BASH_SOURCE[0]##*/} failed: $BASH_COMMAND"' ERR
    exec {CACHE_LOCK}>"$CACHE/lock"
    flock "$CACHE_LOCK" # until built; two beds may then run side by side
}

finish() {
    if [ -n "$QEMU" ]; then
        kill "$QEMU" 2>/dev/null || true
        wait "$QEMU" || true
    fi
    rm -rf "$WORK"
}

built() { exec {CACHE_LOCK}>&-; }

# --- the kernel -------------------------------------------------------------------------------------------------------

find_kernel() { # sets KERNEL and MODULES; downloads Debian's cloud kernel once, and never installs it
    local top=$CACHE/kernel package
    if [ ! -d "$top" ]; then
        need apt-get "apt (a Debian machine or container)"
        package=$({ apt-cache depends linux-image-cloud-amd64 2>/dev/null || true; } |
            awk '/Depends:/ && !seen++ {print $2}')
        [ -n "$package" ] ||
            fail $EXIT_MISSING "apt knows no linux-image-cloud-amd64 (a Debian package); run apt-get update first"
        mkdir "$WORK/kernel"
        (cd "$WORK" && apt-get -q download "$package" >apt.log 2>&1) || {
            cat "$WORK/apt.log" >&2
            fail $EXIT_MISSING "cannot download $package; run apt-get update first"
        }
        dpkg -x "$WORK/$package"_*.deb "$WORK/kernel"
        mv "$WORK/kernel" "$top"
    fi
    KERNEL=$(echo "$top"/boot/vmlinuz-*)
    MODULES=$(echo "$top"/lib/modules/*)
    if [ ! -f "$KERNEL" ] || [ ! -d "$MODULES" ]; then
        fail $EXIT_BED_FAILED "no kernel in $top; remove that directory and run again"
    fi
}

add_modules() { # add_modules ROOT MODULE...: in the order in which the guest is to load them
    local root=$1 name file
    shift
    mkdir -p "$root/bed/modules"
    for name; do
        grep -q "/$name\.ko" "$MODULES/modules.builtin" && continue
        file=$(find "$MODULES/kernel" -name "$name.ko*" -print -quit)
        case $file in
            *.ko) cp "$file" "$root/bed/modules/" ;;
            *.ko.xz) xz -dc "$file" >"$root/bed/modules/$name.ko" ;;
            *) fail $EXIT_BED_FAILED "the kernel in $MODULES has no module $name" ;;
        esac
        echo "$name" >>"$root/bed/modules/order"
    done
}

# --- the interpreter --------------------------------------------------------------------------------------------------

add_file() { # add_file ROOT FILE...: at the path that it has here
    local root=$1 file
    shift
    for file; do
        mkdir -p "$root${file%/*}"
        cp -rL "$file" "$root$file"
    done
}

runs() { # runs PYTHON VERSION: it starts, and is that version (a pyenv shim may do neither)
    "$1" -c 'import sys; sys.exit("%d.%d" % sys.version_info[:2] != sys.argv[1])' "$2" 2>/dev/null
}

find_python() { # find_python VERSION: sets PYTHON (the real program), STDLIB, SITE (its site-packages), PYTHON_KEY
    local version=$1 candidate candidates found=
    [[ $version =~ ^3\.[0-9]+$ ]] || fail 2 "--python takes a version like 3.11, not $version"
    mapfile -t candidates < <(
        type -ap "python$version" || true
        if command -v pyenv >/dev/null; then
            find "$(pyenv root)/versions/" -path "*/versions/$version.*/bin/python$version" | sort -V
        fi
    )
    for candidate in "${candidates[@]}"; do
        if runs "$candidate" "$version"; then
            found=$candidate
            break
        fi
    done
    [ -n "$found" ] || fail $EXIT_MISSING \
        "no python$version that runs; apt-get install python$version python3-pip, or pyenv install $version"
    PYTHON=$("$found" -Ic 'import sys; print(sys.base_prefix)')/bin/python$version
    runs "$PYTHON" "$version" || fail $EXIT_MISSING "$found has no $PYTHON that runs; apt-get install python$version"
    STDLIB=$("$PYTHON" -Ic 'import sysconfig; print(sysconfig.get_path("stdlib"))')
    SITE=$("$PYTHON" -Ic 'import site; print(site.getsitepackages()[0])')
    PYTHON_KEY=$version-$({
        realpath "$PYTHON"
        "$PYTHON" -VV
        declare -f make_base add_libraries compile
        stat -c %Y "$(realpath "$PYTHON")" /bin/busybox
    } | sha256sum | cut -c 1-12)
}

add_libraries() { # add_libraries ROOT: the shared libraries of all that is under ROOT, at the paths they have here
    local root=$1 library
    find "$root" -type f \( -perm -u+x -o -name '*.so*' \) ! -name '*.py' -print0 |
        { xargs -0 ldd 2>/dev/null || true; } | 
            awk '$2 == "=>" && $3 ~ "^/" {print $3} $1 ~ "^/" && $2 ~ "^[(]" {print $1}' | sort -u |
        while read -r library; do
            [ -e "$root$library" ] || add_file "$root" "$library"
        done
}

compile() { # compile ROOT DIRECTORY: the guest is slow, and writes no bytecode; never checked, since times may be lost
    "$PYTHON" -Im compileall -qq -j 0 -s "$1" --invalidation-mode unchecked-hash "$1$2" || true
}

pack() { # pack ROOT ARCHIVE: whoever runs this, root owns the files in the guest
    (cd "$1" && find . -print0 | cpio --null --create --quiet --format=newc --owner=0:0) >"$2.part"
    mv "$2.part" "$2"
}

make_base() { # sets BASE, the archive with busybox, the interpreter and its standard library
    BASE=$CACHE/python-$PYTHON_KEY.cpio
    [ -f "$BASE" ] && return
    say "packing $PYTHON"
    local root=$WORK/base file lib
    mkdir -p "$root"/{bin,etc,proc,sys,dev,root,run,tmp,usr/bin,"${PYTHON%/*}","$STDLIB","$SITE"}
    cp /bin/busybox "$root/bin/"
    ln -s /bin/busybox "$root/usr/bin/env"
    cp -L "$PYTHON" "$root$PYTHON"
    ln -s "${PYTHON##*/}" "$root${PYTHON%/*}/python3"
    tar -c -C "$STDLIB" --exclude=__pycache__ --exclude=./test --exclude=./site-packages --exclude=./dist-packages \
        --exclude='./config-*' --exclude=./idlelib --exclude=./ensurepip --exclude=./tkinter --exclude=./lib2to3 \
        --exclude=./turtledemo --exclude=./pydoc_data --exclude='*/_tkinter.*.so' --exclude='*/_test*.so' \
        --exclude='*.a' . |
        tar -x -C "$root$STDLIB"
    # Of the test package only what CPython's own tests of sockets and asyncio and a TLS test want.
    for file in __init__.py support test_socket.py test_asyncio certdata keycert.pem keycert3.pem pycacert.pem; do
        [ -e "$STDLIB/test/$file" ] || continue
        mkdir -p "$root$STDLIB/test"
        cp -r "$STDLIB/test/$file" "$root$STDLIB/test/"
    done
    find "$root$STDLIB/test" -name __pycache__ -prune -exec rm -rf {} +
    compile "$root" "$STDLIB"
    add_libraries "$root"
    # Loaded by name at run time, so that ldd does not show them: thread exit and name services want these.
    for lib in libgcc_s.so.1 libnss_files.so.2 libnss_dns.so.2; do
        file=$(/sbin/ldconfig -p | awk -v lib="$lib" '$1 == lib && /x86-64/ && !seen++ {print $NF}')
        if [ -n "$file" ]; then add_file "$root" "$file"; fi
    done
    for file in /usr/lib/locale/C.utf8 /etc/protocols /etc/services; do
        [ -e "$file" ] || continue
        add_file "$root" "$file"
    done
    echo 'root:x:0:0:root:/root:/bin/sh' >"$root/etc/passwd"
    echo 'root:x:0:' >"$root/etc/group"
    echo '127.0.0.1 localhost hvsock-guest' >"$root/etc/hosts"
    echo 'hosts: files' >"$root/etc/nsswitch.conf"
    rm -f "$CACHE/python-${PYTHON_KEY%-*}-"*.cpio
    pack "$root" "$BASE"
}

# --- the project ------------------------------------------------------------------------------------------------------

snapshot() { # snapshot DIRECTORY: the checkout as it is, edits included, built things left out
    mkdir -p "$1"
    if git -C "$CHECKOUT" rev-parse --git-dir >/dev/null 2>&1; then
        (cd "$CHECKOUT" && git ls-files -z --cached --others --exclude-standard |
            while IFS= read -r -d '' file; do [ -e "$file" ] && printf '%s\0' "$file"; done |
            tar -c --null --no-recursion --files-from=-) | tar -x -C "$1"
    else
        tar -c -C "$CHECKOUT" --exclude=__pycache__ --exclude=./build --exclude=./dist --exclude=./.venv \
            --exclude='*.so' . | tar -x -C "$1"
    fi
}

pip_install() { # pip_install ARGUMENT...
    "$PYTHON" -Im pip --version >/dev/null 2>&1 || fail $EXIT_MISSING "$PYTHON has no pip; apt-get install python3-pip"
    "$PYTHON" -Im pip --disable-pip-version-check install --quiet --no-compile --root-user-action=ignore "$@" \
        >"$WORK/pip.log" 2>&1 || {
        cat "$WORK/pip.log" >&2
        fail $EXIT_BED_FAILED "pip install failed"
    }
}

make_dependencies() { # sets DEPENDENCIES, the archive with what the extras cli and test ask for
    local key
    key=$("$PYTHON" -Ic 'if 1:
        import sys, tomllib
        print(tomllib.load(sys.stdin.buffer)["project"]["optional-dependencies"])
    ' <"$CHECKOUT/pyproject.toml" | sha256sum | cut -c 1-12)
    DEPENDENCIES=$CACHE/dependencies-$PYTHON_KEY-$key.cpio
    [ -f "$DEPENDENCIES" ] && return
    say "installing the extras cli and test"
    local root=$WORK/dependencies
    snapshot "$WORK/source-of-extras"
    mkdir -p "$root$SITE"
    pip_install --target "$root$SITE" "$WORK/source-of-extras[cli,test]"
    rm -rf "${root:?}$SITE"/{bin,hvsock,hvsock-*}
    compile "$root" "$SITE"
    add_libraries "$root"
    rm -f "$CACHE/dependencies-${PYTHON_KEY%-*}-"*.cpio
    pack "$root" "$DEPENDENCIES"
}

make_libraries() { # sets LIBRARIES, the archive with the libraries of tests/libraries
    local key
    key=$(cat "$CHECKOUT"/tests/libraries/requirements*.txt | sha256sum | cut -c 1-12)
    LIBRARIES=$CACHE/libraries-$PYTHON_KEY-$key.cpio
    [ -f "$LIBRARIES" ] && return
    say "installing the libraries"
    local root=$WORK/libraries
    mkdir -p "$root$SITE"
    pip_install --target "$root$SITE" --requirement "$CHECKOUT/tests/libraries/requirements.txt"
    rm -rf "${root:?}$SITE/bin"
    compile "$root" "$SITE"
    add_libraries "$root"
    rm -f "$CACHE/libraries-${PYTHON_KEY%-*}-"*.cpio
    pack "$root" "$LIBRARIES"
}

add_project() { # add_project ROOT [EXTRA]: installed, from a copy of the checkout; with what an extra asks for
    snapshot "$WORK/source"
    mkdir -p "$1$SITE"
    if [ -n "${2-}" ]; then
        pip_install --target "$1$SITE" "$WORK/source[$2]"
    else
        pip_install --no-deps --target "$1$SITE" "$WORK/source"
    fi
    rm -rf "${1:?}$SITE/bin"
    compile "$1" "$SITE"
    add_libraries "$1"
}

# --- booting ----------------------------------------------------------------------------------------------------------

add_init() { # add_init ROOT: /bed/run is read from standard input, and its exit status is the guest's
    mkdir -p "$1/bed"
    cp "$GUEST_SOURCE/init" "$1/init"
    chmod 755 "$1/init"
    cat >"$1/bed/run"
}

boot() { # boot INITRAMFS SECONDS QEMU-ARGUMENT...: prints what /bed/run prints and returns its exit status
    local initramfs=$1 seconds=$2 status=0
    shift 2
    # Always emulation: on machines that are guests themselves /dev/kvm may be there and hang. "max" has an instruction
    # for entropy. Serial lines: the kernel's console, the output of /bed/run, its exit status.
    timeout --kill-after=10 "$seconds" \
        qemu-system-x86_64 -accel tcg,thread=multi -cpu max,la57=off -smp 2 \
        -nodefaults -vga none -display none -no-reboot \
        -serial "file:$WORK/console" -serial stdio -serial "file:$WORK/status" \
        -kernel "$KERNEL" -initrd "$initramfs" -append "console=ttyS0 loglevel=4 panic=-1" "$@" </dev/null &
    QEMU=$!
    wait "$QEMU" || status=$?
    QEMU=
    if [ $status -eq $EXIT_TIMEOUT ] || [ $status -eq 137 ]; then
        say "the guest was killed after $seconds s; its console ended with"
        tail -n 20 "$WORK/console" >&2
        return $EXIT_TIMEOUT
    fi
    status=$(tr -cd '0-9' <"$WORK/status" 2>/dev/null || true)
    if [ -z "$status" ]; then
        say "the guest stopped without an exit status; its console ended with"
        tail -n 20 "$WORK/console" >&2
        return $EXIT_BED_FAILED
    fi
    return "$status"
}
