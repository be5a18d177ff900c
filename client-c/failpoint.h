/*
 * failpoint.h - named steps at which a test ends, stops or delays a process.
 *
 * IFD_FAILPOINT("client.mapped") marks a step. Unless INFERD_FAILPOINTS is defined it is nothing, and no library that is
 * installed was built with it. With it, the step looks in the table that the variable of the same name points to; its layout
 * and its rules are those of ipc/src/failpoints.rs, and the steps have the names that the Rust client gives them.
 */
#ifndef INFERD_FAILPOINT_H
#define INFERD_FAILPOINT_H

#ifdef INFERD_FAILPOINTS
void ifd_failpoint(const char *name);
#define IFD_FAILPOINT(name) ifd_failpoint(name)
#else
#define IFD_FAILPOINT(name) ((void)0)
#endif

#endif
