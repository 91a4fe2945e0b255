/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Asked for by bcc; nothing of it is used. */
