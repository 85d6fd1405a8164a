# shellcheck shell=bash
# Installs Debian packages for ./test and .ci/run. Sourced; must not install anything by itself.

policy_rc_d=/usr/sbin/policy-rc.d
policy_is_ours=

# Sets `as_root` to the words that make a command run as root (none for root itself), or fails.
may_be_root() {
  as_root=()
  ((EUID == 0)) && return
  sudo -n true 2>/dev/null || return 1
  as_root=(sudo -n)
}

# apt_install PACKAGE...: fails where there is no apt-get or no way to be root.
apt_install() {
  command -v apt-get >/dev/null && may_be_root || return 1
  printf 'installing %s\n' "$*"
  refuse_service_starts
  local status=0 apt=(env DEBIAN_FRONTEND=noninteractive apt-get -qq -o Dpkg::Use-Pty=0)
  "${as_root[@]}" "${apt[@]}" update >/dev/null &&
    "${as_root[@]}" "${apt[@]}" install --yes --no-install-recommends "$@" >/dev/null || status=$?
  allow_service_starts
  return "$status"
}

# Debian starts a server as soon as its package is installed. The tests start their own on own ports, so
# the usual way to forbid that (policy-rc.d) is used for the time of the installation.
refuse_service_starts() {
  [[ -e $policy_rc_d ]] && return
  policy_is_ours=yes
  printf '#!/bin/sh\nexit 101\n' | "${as_root[@]}" tee "$policy_rc_d" >/dev/null
  "${as_root[@]}" chmod 755 "$policy_rc_d"
}

allow_service_starts() {
  [[ $policy_is_ours ]] || return 0
  policy_is_ours=
  "${as_root[@]}" rm -f "$policy_rc_d"
}
