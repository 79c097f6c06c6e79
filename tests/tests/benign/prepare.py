"""What a user had before: prepare.py DIRECTORY NUMBER. Letters, mails, pictures, films, a database, a repository, sources, logs."""
import glob
import os
import random
import shutil
import sqlite3
import subprocess
import sys
import tempfile

root, number = sys.argv[1], int(sys.argv[2])
chance = random.Random(20261122)
WORDS = open(__file__, encoding="utf-8").read().split() + "and the of in to we you was were with about dear when".split()


def put(path, data):
    path = os.path.join(root, path)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "wb") as file:
        file.write(data)


def text(size):
    lines, have = [], 0
    while have < size:
        line = " ".join(chance.choice(WORDS) for _ in range(12))
        lines.append(line)
        have += len(line) + 1
    return ("\n".join(lines) + "\n").encode()


def jpeg(size):
    exif = b"\xff\xd8\xff\xe1\x00\x40Exif\0\0II*\0" + b"2026:11:0%d 10:00:00\0" % chance.randint(1, 9)
    return exif.ljust(68, b"\0") + chance.randbytes(size)


def film(size):
    return b"\0\0\0\x18ftypmp42\0\0\0\0mp42isom" + b"\0\0\x10\0moov" + chance.randbytes(size)


for n in range(number):
    size = chance.choice([700, 3000, 9000, 30000, 80000])
    put(f"tree/d{n % 9}/letter{n}.txt", text(size))
    if n % 3 == 0:
        put(f"tree/d{n % 9}/sheet{n}.docx", b"PK\x03\x04\x14\0\x06\0" + chance.randbytes(size))
    if n % 5 == 0:
        put(f"tree/d{n % 9}/picture{n}.jpg", jpeg(size))
    put(f"mail/cur/{1700000000 + n}.M{n}P1.host:2,S", b"From: somebody@example.org\nSubject: number %d\n\n" % n + text(size // 4))
    put(f"card/DCIM/IMG_{n:04}.JPG", jpeg(size))
    put(f"source/s{n % 4}/part{n}.c", b"int part%d(void) { return %d; }\n" % (n, n) + b"/* " + text(500).replace(b"*/", b"") + b"*/\n")
for n in range(max(8, number // 10)):
    put(f"films/film{n}.mp4", film(400_000))
    put(f"archives/old{n}.tar.gz.enc", b"Salted__" + chance.randbytes(100_000))
    put(f"log/app.log.{n}.gz", b"\x1f\x8b\x08\0\0\0\0\0\0\x03" + chance.randbytes(9000))
    put(f"log/service{n}.log", text(60_000))
base = sqlite3.connect(os.path.join(root, "base.sqlite"))
base.execute("create table thing (id integer primary key, name text, blob blob)")
base.executemany(
    "insert into thing (name, blob) values (?, ?)",
    [(f"thing {n}", chance.randbytes(chance.randint(50, 3000))) for n in range(number * 10)],
)
base.commit()
base.close()
repository = os.path.join(root, "repository")
os.makedirs(repository)


def git(*arguments):
    who = ["-c", "user.name=A", "-c", "user.email=a@example.org"]
    subprocess.run(["git", *who, *arguments], cwd=repository, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


git("init", "-q")
for n in range(5):
    for m in range(number // 2):
        put(f"repository/m{m % 5}/file{m}.txt", text(2000))
    git("add", "-A")
    git("commit", "-qm", f"version {n}")


def postgres(directory):
    """A cluster with a table of chance; only for the job of that name, as it is large."""
    found = sorted(glob.glob("/usr/lib/postgresql/*/bin"))
    home = tempfile.mkdtemp()
    who = ["unshare", "--user", "--map-user=postgres", "--map-group=postgres"]

    def run(program, *arguments):
        environment = {"PATH": found[-1] + ":" + os.environ["PATH"], "LC_ALL": "C", "PGHOST": home, "PGUSER": "postgres"}
        subprocess.run([*who, program, *arguments], check=True, stdout=subprocess.DEVNULL, env=environment, cwd=home)

    os.mkdir(directory, 0o700)
    run("initdb", "-D", directory, "-U", "postgres", "-A", "trust")
    run("pg_ctl", "-w", "-D", directory, "-l", home + "/log", "-o", f"-k {home} -c listen_addresses=", "start")
    run("psql", "-qc", "create table thing as select g as id, md5(g::text) as name, (select string_agg(decode(md5((g * 99 + i)::text), 'hex'), '')"
        f" from generate_series(1, 50) i) as blob from generate_series(1, {number * 10}) g", "postgres")
    run("pg_ctl", "-w", "-D", directory, "-m", "fast", "stop")
    shutil.rmtree(home)


if os.path.basename(root) == "postgres":
    postgres(os.path.join(root, "cluster"))
