#!/bin/bash
# PID 1 of the throw-away machine: boot.sh STATE SITE REPO PYTHON. Makes a root file system out of this machine's own
# (overlayfs, nothing is written below), and becomes systemd. Runs in namespaces of its own: see booted.py.
set -euo pipefail
state=$1 site=$2 repo=$3 python=$4
root=$state/root
mount --make-rprivate /
mount -t tmpfs -o mode=755 tmpfs "$state/overlay"
mkdir "$state"/overlay/{upper,work}
mount -t overlay overlay -o "lowerdir=/,upperdir=$state/overlay/upper,workdir=$state/overlay/work,xino=off" "$root"

mount -t tmpfs -o mode=755,nosuid tmpfs "$root/dev"
mkdir "$root"/dev/{pts,shm,mqueue}
for node in null:1:3 zero:1:5 full:1:7 random:1:8 urandom:1:9 tty:5:0; do
  IFS=: read -r name major minor <<<"$node"
  mknod -m 666 "$root/dev/$name" c "$major" "$minor"
done
mount -t devpts -o newinstance,ptmxmode=0666,mode=620,gid=5 devpts "$root/dev/pts"
ln -s pts/ptmx "$root/dev/ptmx"
mount -t tmpfs -o mode=1777 tmpfs "$root/dev/shm"
ln -s /proc/self/fd "$root/dev/fd"
for fd in 0:stdin 1:stdout 2:stderr; do ln -s "fd/${fd%%:*}" "$root/dev/${fd##*:}"; done
: >"$root/dev/console"
mount --bind "$state/console" "$root/dev/console"
mount -t proc -o nosuid,nodev,noexec proc "$root/proc"
mount -t sysfs -o nosuid,nodev,noexec,ro sysfs "$root/sys"
mount -t cgroup2 -o nsdelegate cgroup2 "$root/sys/fs/cgroup" || mount -t cgroup2 cgroup2 "$root/sys/fs/cgroup"
mount -t tmpfs -o mode=755,nosuid,nodev tmpfs "$root/run"
mount -t tmpfs -o mode=1777,nosuid,nodev tmpfs "$root/tmp"

# What preemptd needs, at paths that every user may reach: homes are closed, and a clone may lie in one.
mkdir -p "$root"/srv/{python,site,repo,out,venv/bin}
mount --bind "$(dirname "$(dirname "$python")")" "$root/srv/python"
mount --bind "$site" "$root/srv/site"
mount --bind "$repo" "$root/srv/repo"
mount --bind "$state/out" "$root/srv/out"
version=$(basename "$python")
if ldd "$python" | grep -q libpython; then # one that is shared finds it where it was built, which may be in a home
  echo /srv/python/lib >"$root/etc/ld.so.conf.d/00-lab.conf"
  chroot "$root" /sbin/ldconfig
fi
mkdir -p "$root/srv/venv/lib/$version/site-packages"
printf '/srv/site\n/srv/repo\n/srv/repo/providers\n' >"$root/srv/venv/lib/$version/site-packages/lab.pth"
printf 'home = /srv/python/bin\ninclude-system-site-packages = false\n' >"$root/srv/venv/pyvenv.cfg"
ln -s "/srv/python/bin/$version" "$root/srv/venv/bin/python"
printf '#!/srv/venv/bin/python\nfrom preemptd.cli import main\n\nmain()\n' >"$root/srv/venv/bin/preemptd"
chmod 755 "$root/srv/venv/bin/preemptd"
for user in alice:5001 bob:5002; do
  name=${user%%:*} uid=${user##*:}
  echo "$name:x:$uid:$uid::/srv/$name:/bin/bash" >>"$root/etc/passwd"
  echo "$name:x:$uid:" >>"$root/etc/group"
  mkdir "$root/srv/$name"
  chown "$uid:$uid" "$root/srv/$name"
done

# Nothing but journald, D-Bus and logind, and what the tests bring.
rm -rf "$root/etc/systemd/system" "$root/etc/preemptd"
mkdir -p "$root"/etc/{preemptd,systemd/system,systemd/journald.conf.d,systemd/system.conf.d,systemd/logind.conf.d}
: >"$root/etc/fstab"
echo lab >"$root/etc/hostname"
rm -f "$root/etc/machine-id"
tr -d - </proc/sys/kernel/random/uuid >"$root/etc/machine-id"
cat >"$root/etc/systemd/system/lab.target" <<'UNIT'
[Unit]
Description=A machine for tests
Requires=systemd-journald.service dbus.socket basic.target
After=systemd-journald.service dbus.socket basic.target
AllowIsolate=yes
UNIT
for unit in systemd-udevd systemd-timesyncd systemd-networkd systemd-resolved systemd-pstore systemd-sysctl ldconfig \
  systemd-journal-catalog-update systemd-update-utmp systemd-random-seed systemd-update-done systemd-firstboot apparmor \
  systemd-machine-id-commit systemd-boot-update keyboard-setup console-setup systemd-binfmt systemd-modules-load \
  systemd-remount-fs systemd-journal-flush systemd-ask-password-console systemd-udev-trigger; do
  ln -s /dev/null "$root/etc/systemd/system/$unit.service"
done
for unit in dev-hugepages.mount dev-mqueue.mount sys-kernel-debug.mount sys-kernel-tracing.mount timers.target \
  sys-kernel-config.mount sys-fs-fuse-connections.mount proc-sys-fs-binfmt_misc.automount swap.target \
  proc-sys-fs-binfmt_misc.mount systemd-ask-password-console.path systemd-ask-password-wall.path cryptsetup.target \
  veritysetup.target integritysetup.target podman.socket; do
  ln -s /dev/null "$root/etc/systemd/system/$unit"
done
printf '[Journal]\nStorage=volatile\nRateLimitIntervalSec=0\nForwardToConsole=no\n' \
  >"$root/etc/systemd/journald.conf.d/lab.conf"
printf '[Manager]\nLogTarget=journal\nShowStatus=no\nDefaultTimeoutStopSec=20s\n' \
  >"$root/etc/systemd/system.conf.d/lab.conf"

# Loopback, with the metadata addresses on it, and one that stands for the rest of the world.
ip link set lo up
for address in 169.254.169.254 10.9.9.9; do ip addr add "$address/32" dev lo; done
hostname lab
mkdir "$root/.old"
cd "$root"
pivot_root . .old
cd /
umount -l /.old
rmdir /.old
exec </dev/null >/dev/console 2>&1
exec env -i container=lab PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
  /lib/systemd/systemd --unit=lab.target --log-level=info
