#!/bin/sh
# What busybox's udhcpc does with a lease: the card's address, the way out, and who knows names.
case $1 in
deconfig) ip address flush dev "$interface"; ip link set "$interface" up ;;
bound | renew)
    ifconfig "$interface" "$ip" netmask "$subnet"
    for gateway in $router; do ip route replace default via "$gateway" dev "$interface"; done
    { [ -z "$domain" ] || echo "search $domain"; for server in $dns; do echo "nameserver $server"; done; } >/etc/resolv.conf
    ;;
esac
