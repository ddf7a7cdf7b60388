# What the peer's control domain does: it makes the measured guest, whose console it shows, as `xl` of Debian has it.
# The devices' scripts are the least that works: Debian's, which are for bash, need half a minute under emulation.
cat > /etc/xen/scripts/block-plain << 'EOF'
#!/bin/sh
[ "$1" = add ] && xenstore-write "$XENBUS_PATH/physical-device" 7:0 "$XENBUS_PATH/hotplug-status" connected
EOF
cat > /etc/xen/scripts/vif-plain << 'EOF'
#!/bin/sh
[ "$1" = online ] || exit 0
ip addr add 10.0.0.1/24 dev "$vif"
ip link set "$vif" up
xenstore-write "$XENBUS_PATH/hotplug-status" connected
EOF
chmod +x /etc/xen/scripts/*-plain
cat > /guest.cfg << 'EOF'
name = "guest"
kernel = "/guest/vmlinuz"
ramdisk = "/guest/ramdisk"
memory = 256
EOF
words="console=hvc0 noreplace-smp"
rate() {
    echo "BEGIN $1"
    shift
    "$@"
    echo "END $?"
}
lists() { for _ in 1 2 3 4 5; do xl list > /dev/null; done; }
writes() {
    set --
    for number in $(seq 500); do set -- "$@" "/bench/$number" x; done
    xenstore-write "$@"
}
case " $(cat /proc/cmdline) " in *" measure=tools "*)
    echo CONTROL-READY
    rate "five lists" lists
    rate "500 writes" writes
    ;;
esac
case " $(cat /proc/cmdline) " in *" measure=devices "* | *" measure=tools "*)
    dd if=/dev/zero of=/disk.img bs=1M count=64 2> /dev/null
    losetup /dev/loop0 /disk.img
    words="$words measure=devices ip=10.0.0.2::10.0.0.1:255.255.255.0"
    cat >> /guest.cfg << 'EOF'
disk = [ "format=raw,vdev=xvda,access=rw,script=block-plain,target=/dev/loop0" ]
vif = [ "script=/etc/xen/scripts/vif-plain" ]
EOF
    dd if=/dev/zero of=/tmp/file bs=1M count=24 2> /dev/null
    httpd -h /tmp
    ;;
esac
echo "extra = \"$words\"" >> /guest.cfg
echo XL-CREATE
xl create -c /guest.cfg
