// The fuzzer of runs: small problems through the kernel libraries, against a reference that shares no code with them.
// kUsage says how it is called.
//
// A case is one problem on one library: all three passes, by choice and by every algorithm that does not decline.
// Workers are processes that share nothing but their progress: one that hangs or crashes names its case, and the run
// goes on with the next. Each kind of failure is made smaller and printed as a line that runs it again.
#include <dlfcn.h>
#include <malloc.h>
#include <poll.h>

#include <fstream>
#include <map>

#include "runs_child.h"
#include "runs_drawer.h"

#if defined(__SANITIZE_ADDRESS__)
extern "C" const char* __asan_default_options() { return "detect_leaks=0:exitcode=99"; }
#endif
extern "C" const char* __ubsan_default_options() { return "print_stacktrace=1:exitcode=99"; }
#if defined(FUZZ_THREAD_SANITIZER)
extern "C" const char* __tsan_default_options() { return "halt_on_error=1:exitcode=99"; }
#endif

namespace fuzz {
namespace {

constexpr const char* kUsage = R"(usage:
  runs [--libraries DIR] [--isa ISA,ISA | all] [--seconds S] [--count N] [--seed SEED] [--processes P]
       [--histogram FILE] [--examples E] [--stop] [--threads] [--cpu-limit S]
      draws cases, for 10 seconds where nothing else is said; the exit status is 1 if any failed
        --libraries  the folder of the kernel libraries (default: conv_ext/lib)
        --isa        the libraries of DIR to run (default: all that the processor can run, amx-emulated too)
        --histogram  writes how often each algorithm ran in each pass, dtype and layout
        --examples   cases printed of each kind of failure (default: 2);  --stop: ends with the first
        --threads    runs every case on threads, for ThreadSanitizer
        --cpu-limit  seconds of processor time after which a case hangs (default: 5)
  runs [--libraries DIR] --case "n=1 c=4 ..."   runs one case again
  runs [--libraries DIR] --corpus FILE          runs every line of a file, on every library
  runs --seed SEED --print INDEX                prints a case
)";

struct Options {
  std::string libraries = "conv_ext/lib", isa, histogram, line, corpus;
  double seconds = 0;
  uint64_t count = 0, seed = 0, print = ~uint64_t(0);
  int processes = 1, examples = 2;
  bool threads = false, stop = false;
  Limits limits;
};

constexpr int kMostLibraries = 8, kLayouts = 3;

// How often each algorithm ran, and how often it was the one that is chosen.
struct Histogram {
  uint64_t ran[kMostLibraries][conv_ext::kCandidateCount][conv_ext::kPasses][conv_ext::kDTypes][kLayouts];
  uint64_t chosen[kMostLibraries][conv_ext::kCandidateCount][conv_ext::kPasses][conv_ext::kDTypes][kLayouts];
  uint64_t cases[kMostLibraries];
};

// The layout of a case: that of all three tensors, or strided.
int layout_of(const Case& c) {
  const std::string name = c.layout[0].name();
  for (const Layout& layout : c.layout)
    if (name != layout.name()) return 2;
  return name == "nchw" ? 0 : name == "nhwc" ? 1 : 2;
}

bool processor_runs(const std::string& isa) {
  if (isa == "baseline") return true;
#if defined(__x86_64__)
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
  if (isa == "avx2") return avx2;
  if (isa == "avx512" || isa == "amx-emulated") return avx512;
  if (isa == "avx512_bf16") return avx512 && __builtin_cpu_supports("avx512bf16");
#endif
  return false;
}

// Those that were asked for, or all that are there and that the processor can run.
std::vector<Library> load_libraries(const Options& options) {
  std::vector<Library> libraries;
  std::istringstream names(options.isa.empty() || options.isa == "all" ? "baseline,avx2,avx512,avx512_bf16,amx-emulated"
                                                                       : options.isa);
  const bool all = options.isa.empty() || options.isa == "all";
  for (std::string name; std::getline(names, name, ',');) {
    const std::string path = options.libraries + "/libconv_ext_" + name + ".so";
    if (!processor_runs(name)) {
      std::printf("skipped %s: this processor does not run it\n", name.c_str());
      continue;
    }
    if (all && access(path.c_str(), R_OK) != 0) {
      std::printf("skipped %s: no %s\n", name.c_str(), path.c_str());
      continue;
    }
    void* handle = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
    void* symbol = handle ? dlsym(handle, "conv_ext_kernel_library") : nullptr;
    if (symbol == nullptr) {
      std::fprintf(stderr, "%s\n", dlerror());
      std::exit(2);
    }
    void* const witness = dlsym(handle, "conv_ext_witness");
    libraries.push_back({name, reinterpret_cast<const KernelLibrary* (*)()>(symbol)(),
                         witness ? reinterpret_cast<const conv_ext::Witness* (*)()>(witness)() : nullptr});
  }
  if (libraries.empty()) {
    std::fprintf(stderr, "no kernel library in %s that this processor runs: --libraries says where they are\n",
                 options.libraries.c_str());
    std::exit(2);
  }
  return libraries;
}

class Fuzzer {
 public:
  Fuzzer(const Options& options, const std::vector<Library>& libraries)
      : options_(options),
        libraries_(libraries),
        children_(libraries, options.limits),
        drawer_(options.threads),
        stages_(shared_memory<Stage>(size_t(options.processes))),
        histograms_(shared_memory<Histogram>(size_t(options.processes))),
        workers_(size_t(options.processes)) {}

  int run() {
    begin_ = now();
    for (size_t i = 0; i < workers_.size(); ++i) start(i, i);
    double next_line = begin_ + 10;
    for (bool any = true; any;) {
      any = false;
      std::vector<pollfd> polled;
      for (const Worker& worker : workers_) polled.push_back({worker.pipe, POLLIN, 0});
      poll(polled.data(), polled.size(), 200);
      for (size_t i = 0; i < workers_.size(); ++i) {
        if (workers_[i].pipe < 0) continue;
        if (polled[i].revents != 0) listen(i);
        watch(i);
        any = any || workers_[i].pipe >= 0;
      }
      if (options_.stop && failures_ > 0) {
        for (Worker& worker : workers_)
          if (worker.pipe >= 0) kill(worker.process, SIGKILL);
        any = false;
      }
      if (now() > next_line) {
        progress();
        next_line = now() + 10;
      }
    }
    progress();
    print_histogram();
    for (const auto& [signature, count] : signatures_) std::printf("%6ld x %s\n", long(count), signature.c_str());
    return failures_ ? 1 : 0;
  }

 private:
  struct Worker {
    pid_t process = -1;
    int pipe = -1;
    std::string text;
    uint64_t steps = 0;
    double moved = 0;
  };

  void start(size_t i, uint64_t first) {
    int ends[2];
    if (pipe(ends) != 0) std::exit(3);
    std::fflush(nullptr);
    const pid_t child = fork();
    if (child == 0) {
      close(ends[0]);
      work(i, first, ends[1]);
      _exit(0);
    }
    close(ends[1]);
    workers_[i].process = child;
    workers_[i].pipe = ends[0];
    workers_[i].moved = now();
  }
  // In the child: one case after the other; a line for each failure.
  void work(size_t i, uint64_t first, int pipe) {
    // Blocks are kept from case to case instead of going back to the system each time.
    mallopt(M_MMAP_THRESHOLD, 256 << 20);
    mallopt(M_TRIM_THRESHOLD, 512 << 20);
    Histogram& histogram = histograms_[i];
    const Counter count = [&](const Case& c, int isa, Pass pass, int candidate, bool chosen) {
      const int layout = layout_of(c);
      ++histogram.ran[isa][candidate][int(pass)][int(c.z.dtype)][layout];
      if (chosen) ++histogram.chosen[isa][candidate][int(pass)][int(c.z.dtype)][layout];
    };
    for (uint64_t index = first; !done(index); index += workers_.size()) {
      stages_[i].index = index;
      limit_cpu_time(options_.limits.cpu_seconds);
      std::vector<Failure> failures;
      check_case(drawer_.draw(options_.seed, index), libraries_, &stages_[i], count, &failures);
      for (size_t isa = 0; isa < libraries_.size(); ++isa) ++histogram.cases[isa];
      std::string lines;
      for (const Failure& f : failures)
        lines += std::to_string(index) + "|" + f.kind + "|" + f.isa + "|" + f.pass + "|" + f.algorithm + "|" +
                 f.message + "\n";
      if (!lines.empty() && write(pipe, lines.data(), lines.size()) < 0) _exit(3);
    }
  }
  bool done(uint64_t index) const {
    return (options_.count && index >= options_.count) || (options_.seconds > 0 && now() - begin_ > options_.seconds);
  }

  void listen(size_t i) {
    Worker& worker = workers_[i];
    char buffer[65536];
    const ssize_t count = read(worker.pipe, buffer, sizeof(buffer));
    if (count > 0) {
      worker.text.append(buffer, size_t(count));
      for (size_t end; (end = worker.text.find('\n')) != std::string::npos; worker.text.erase(0, end + 1)) {
        std::istringstream words(worker.text.substr(0, end));
        std::string index;
        Failure f;
        std::getline(words, index, '|');
        for (std::string* word : {&f.kind, &f.isa, &f.pass, &f.algorithm}) std::getline(words, *word, '|');
        std::getline(words, f.message);
        report(std::strtoull(index.c_str(), nullptr, 10), f);
      }
      return;
    }
    close(worker.pipe);
    worker.pipe = -1;
    int status = 0;
    waitpid(worker.process, &status, 0);
    if (status == 0) return;
    const uint64_t index = stages_[i].index;
    const Failure failure = failure_of(status, stages_[i], libraries_);
    for (size_t isa = 0; isa < libraries_.size(); ++isa) ++histograms_[i].cases[isa];
    report(index, failure);
    // A machine on which nothing works is not reported a million times.
    if (++crashes_ > 20000) return;
    if (!done(index + workers_.size())) start(i, index + workers_.size());
  }
  void watch(size_t i) {
    Worker& worker = workers_[i];
    const uint64_t steps = stages_[i].steps;
    if (steps != worker.steps) {
      worker.steps = steps;
      worker.moved = now();
    } else if (worker.pipe >= 0 && now() - worker.moved > options_.limits.wall_seconds) {
      kill(worker.process, SIGKILL);
      worker.moved = now();
    }
  }

  void report(uint64_t index, Failure failure) {
    ++failures_;
    const int64_t seen = signatures_[failure.signature()]++;
    if (seen >= options_.examples) return;
    Case c = drawer_.draw(options_.seed, index);
    std::printf("FAILED %s %s: %s\n  found as  %s\n", failure.signature().c_str(), failure.isa.c_str(),
                failure.message.c_str(), text_of(c).c_str());
    std::fflush(stdout);
    c = children_.shrink(c, &failure);
    std::printf("  smaller:  %s\n  case      %s\n", failure.message.c_str(), text_of(c).c_str());
    std::fflush(stdout);
    for (Worker& worker : workers_) worker.moved = now();
  }

  Histogram total() const {
    Histogram sum{};
    for (size_t i = 0; i < workers_.size(); ++i) {
      const uint64_t* from = reinterpret_cast<const uint64_t*>(&histograms_[i]);
      uint64_t* to = reinterpret_cast<uint64_t*>(&sum);
      for (size_t j = 0; j < sizeof(Histogram) / sizeof(uint64_t); ++j) to[j] += from[j];
    }
    return sum;
  }
  void progress() const {
    const Histogram all = total();
    uint64_t cases = 0;
    for (uint64_t count : all.cases) cases += count;
    const double seconds = now() - begin_;
    std::printf("%7.0f s  %ld problems  %ld cases  %.0f/s  %ld failures of %ld kinds\n", seconds, long(all.cases[0]),
                long(cases), double(cases) / seconds, long(failures_), long(signatures_.size()));
    std::fflush(stdout);
  }
  // As lines, and as a file of JSON whose numbers may be added to another's: see histogram.py.
  void print_histogram() const {
    const Histogram all = total();
    std::ostringstream json;
    json << "{\"cases\": {";
    for (size_t isa = 0; isa < libraries_.size(); ++isa)
      json << (isa ? ", " : "") << "\"" << libraries_[isa].name << "\": " << all.cases[isa];
    json << "}, \"failures\": " << failures_ << ", \"ran\": {";
    bool first = true;
    for (size_t isa = 0; isa < libraries_.size(); ++isa)
      for (int a = 0; a < conv_ext::kCandidateCount; ++a)
        for (int p = 0; p < conv_ext::kPasses; ++p)
          for (int d = 0; d < conv_ext::kDTypes; ++d)
            for (int l = 0; l < kLayouts; ++l) {
              if (all.ran[isa][a][p][d][l] == 0) continue;
              json << (first ? "" : ", ") << "\n\"" << libraries_[isa].name << " " << conv_ext::kCandidates[a].name
                   << " " << kPassNames[p] << " " << kDTypeNames[d] << " " << kLayoutNames[l] << "\": ["
                   << all.ran[isa][a][p][d][l] << ", " << all.chosen[isa][a][p][d][l] << "]";
              first = false;
            }
    json << "}}\n";
    if (!options_.histogram.empty()) std::ofstream(options_.histogram) << json.str();
  }

  const Options& options_;
  const std::vector<Library>& libraries_;
  Children children_;
  const Drawer drawer_;
  Stage* const stages_;
  Histogram* const histograms_;
  std::vector<Worker> workers_;
  std::map<std::string, int64_t> signatures_;
  int64_t failures_ = 0, crashes_ = 0;
  double begin_ = 0;
};

// Runs a case in a child; prints what is wrong with it. The number of failures.
int run_again(Children* children, const Case& c) {
  const std::vector<Failure> failures = children->run(c, false);
  std::printf("%s %s\n", failures.empty() ? "ok    " : "FAILED", text_of(c).c_str());
  for (const Failure& f : failures)
    std::printf("  %s on %s: %s\n", f.signature().c_str(), f.isa.c_str(), f.message.c_str());
  std::fflush(stdout);
  return failures.empty() ? 0 : 1;
}

Options parse_options(int count, char** words) {
  Options options;
  for (int i = 1; i < count; ++i) {
    const std::string word = words[i];
    const auto value = [&] {
      if (i + 1 >= count) {
        std::fprintf(stderr, "%s needs a value\n", word.c_str());
        std::exit(2);
      }
      return std::string(words[++i]);
    };
    const auto number = [&](auto* read, auto least) {
      const std::string text = value();
      std::istringstream stream(text);
      const bool negative = text[0] == '-';  // an unsigned number would be read all the same
      if (!(stream >> *read) || stream.peek() != std::char_traits<char>::eof() || negative || *read < least) {
        std::fprintf(stderr, "%s must be a number, and not too small, got \"%s\"\n", word.c_str(), text.c_str());
        std::exit(2);
      }
    };
    if (word == "--libraries")
      options.libraries = value();
    else if (word == "--isa")
      options.isa = value();
    else if (word == "--seconds")
      number(&options.seconds, 0.0);
    else if (word == "--count")
      number(&options.count, uint64_t(0));
    else if (word == "--seed")
      number(&options.seed, uint64_t(0));
    else if (word == "--processes")
      number(&options.processes, 1);
    else if (word == "--examples")
      number(&options.examples, 0);
    else if (word == "--histogram")
      options.histogram = value();
    else if (word == "--threads")
      options.threads = true;
    else if (word == "--stop")
      options.stop = true;
    else if (word == "--cpu-limit")
      number(&options.limits.cpu_seconds, 0.0);
    else if (word == "--case")
      options.line = value();
    else if (word == "--corpus")
      options.corpus = value();
    else if (word == "--print")
      number(&options.print, uint64_t(0));
    else {
      const bool asked = word == "--help" || word == "-h";
      if (!asked) std::fprintf(stderr, "unknown option %s\n", word.c_str());
      std::fputs(kUsage, asked ? stdout : stderr);
      std::exit(asked ? 0 : 2);
    }
  }
  if (options.count == 0 && options.seconds <= 0) options.seconds = 10;
  return options;
}

int run_main(const Options& options) {
  if (options.print != ~uint64_t(0)) {
    std::printf("%s\n", text_of(Drawer(options.threads).draw(options.seed, options.print)).c_str());
    return 0;
  }
  const std::vector<Library> libraries = load_libraries(options);
  if (!options.line.empty() || !options.corpus.empty()) {
    Children children(libraries, options.limits);
    if (!options.line.empty()) return run_again(&children, parse_case(options.line));
    int failed = 0, all = 0;
    std::ifstream file(options.corpus);
    if (!file) std::fprintf(stderr, "no such file: %s\n", options.corpus.c_str());
    for (std::string line; std::getline(file, line);) {
      if (line.empty() || line[0] == '#') continue;
      Case c = parse_case(line);
      c.isa = c.pass = c.algorithm = "";
      failed += run_again(&children, c);
      ++all;
    }
    std::printf("%d of %d cases failed\n", failed, all);
    return failed || all == 0 ? 1 : 0;
  }
  return Fuzzer(options, libraries).run();
}

}  // namespace
}  // namespace fuzz

int main(int count, char** words) { return fuzz::run_main(fuzz::parse_options(count, words)); }
