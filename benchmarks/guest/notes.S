# What a small PV guest says of itself to whoever loads it (xen/include/public/elfnote.h): `xen_notes NAME` behind the
# symbols virt_base and _start.

        .macro  note type, kind, value:vararg
        .balign 4
        .long   4, 2f - 1f, \type
        .asciz  "Xen"
1:      \kind   \value
2:      .balign 4
        .endm

        .macro  xen_notes name
        .section .note.Xen, "a", @note
        note    6, .asciz, "\name"              # GUEST_OS
        note    5, .asciz, "xen-3.0"            # XEN_VERSION
        note    8, .asciz, "generic"            # LOADER
        note    9, .asciz, "yes"                # PAE_MODE
        note    3, .quad, virt_base             # VIRT_BASE
        note    4, .quad, virt_base             # PADDR_OFFSET
        note    1, .quad, _start                # ENTRY
        .endm
