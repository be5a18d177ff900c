// usable_from_cpp.cpp - the header compiles as C++11 without a warning, and links against the C library.
#include <inferd.h>

#include <cstdio>
#include <cstring>

int main()
{
    struct inferd_attach_options options = inferd_attach_defaults();
    struct inferd_submit_options labels = inferd_submit_defaults();
    char why[256] = "";
    options.runtime_dir = "/nonexistent";
    options.error = why;
    options.error_bytes = sizeof why;
    labels.flags = INFERD_RESET;
    struct inferd_session *session = nullptr;
    const int error = inferd_attach("go2", &options, &session);
    const bool refused = std::strcmp(inferd_error_name(error), "no_daemon") == 0 && session == nullptr && why[0] != '\0';
    const bool versions = std::strcmp(inferd_version(), INFERD_VERSION) == 0 && inferd_abi() >> 16 == INFERD_ABI_MAJOR;
    inferd_detach(session);
    if (refused && versions && labels.size == sizeof labels) {
        std::puts("ok the_header_is_usable_from_cpp");
        return 0;
    }
    std::fprintf(stderr, "usable_from_cpp: %d %s\n", error, why);
    return 1;
}
